"""A radiograph of a 128^3 CT on 200 x 200 pixels: slice-wise Joseph sums against DiffDRR's Siddon, in the same run, on the same rays.

    python -m venv peer && peer/bin/pip install torch==2.13.0 diffdrr
    python benchmarks/drr.py --peer-python peer/bin/python [--runs 7] [--threads 2]

The peer has an environment of its own and is driven as a process, call by call, between our calls. Three tasks: forward; forward with the attenuation split by five labels;
forward and backward in the pose. Agreement with the exact traversal is asserted beside the times. Ratios are printed for wall and for processor time; on a busy machine the second is steadier.
"""
import os
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')   # a waiting process must not spin on the other's core
import argparse, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch

SDD, SID, PIXEL, SIDE, TURN = 1800., 1500., 2.2, 200, 20.
GOALS = dict(forward=20, labels=8, pose=10)

def clock(f):
    "Wall and processor seconds of one call."
    w, c = time.perf_counter(), time.process_time(); f()
    return time.perf_counter() - w, time.process_time() - c

def peer(file, threads):
    "In the peer's environment: answer each line of the input with the seconds that the task took."
    import torchio
    from diffdrr.data import read
    from diffdrr.drr import DRR
    torch.set_num_threads(threads)
    z = np.load(file)
    grid = lambda kind, a: kind(tensor=torch.from_numpy(a)[None], affine=z['affine'])
    subject = read(grid(torchio.ScalarImage, z['mu']), labelmap=grid(torchio.LabelMap, z['labels']), orientation='PA')
    drr = DRR(subject, sdd=SDD, height=SIDE, width=SIDE, delx=PIXEL, dely=PIXEL)
    drr.density.copy_(torch.from_numpy(z['mu']))          # their HU curve is another one: give both the same attenuation
    rot, xyz, weight = torch.tensor([[np.radians(-TURN), 0., 0.]], dtype=torch.float32), torch.tensor([[0., -SID, 0.]]), torch.from_numpy(z['weight'])
    def image(rot=rot, xyz=xyz, **kw): return drr(rot, xyz, parameterization='euler_angles', convention='ZXY', **kw)
    def pose():
        r, t = rot.clone().requires_grad_(), xyz.clone().requires_grad_()
        (image(r, t)*weight).sum().backward()
    calls = dict(forward=lambda: image(), labels=lambda: image(mask_to_channels=True), pose=pose)
    np.savez(Path(file).with_name('peer.npz'), forward=image().numpy(), labels=image(mask_to_channels=True).numpy())
    print('ready', flush=True)
    for line in sys.stdin: print(json.dumps(clock(calls[line.strip()])), flush=True)

def ours(mu, labels, weight, spacing, threads):
    "The same three tasks, and the exact sums to compare with."
    from xmodseg.drr import Beam, line_integrals
    torch.set_num_threads(threads)
    beam, turn, split = Beam((SIDE, SIDE), (PIXEL, PIXEL), SDD, SID), (0., 0., TURN), torch.stack([mu*(labels == k) for k in range(6)])
    def pose(method='joseph'):
        a, t = torch.tensor([turn], requires_grad=True), torch.zeros(1, 3, requires_grad=True)
        (line_integrals(mu[None], spacing, beam, a, t, method)*weight).sum().backward()
        return torch.cat([a.grad, t.grad])
    draw = lambda v, method='joseph': line_integrals(v, spacing, beam, turn, method=method)
    exact = dict(forward=draw(mu[None], 'siddon'), labels=draw(split, 'siddon'))
    return dict(forward=lambda: draw(mu[None]), labels=lambda: draw(split), pose=pose), exact

def patient_files(folder):
    "A generated thorax as attenuation and five labels, in a file that the peer can read."
    from xmodseg.cbct import hu_to_mu
    from xmodseg.phantom import LABELS, patient, render_ct
    p = patient(5, shape=(128, 128, 128), spacing=3., centre=(0, 20, 215))
    groups = [range(1, 18), ('rib', 'sternum'), ('lung_l', 'lung_r'), ('LV', 'RV', 'LA', 'RA', 'myocardium'), ('liver',)]
    labels = sum((k + 1)*np.isin(p.labels.data, [LABELS.get(n, n) for n in g]).astype(np.uint8) for k, g in enumerate(groups))
    mu = hu_to_mu(torch.from_numpy(render_ct(p).data)).contiguous()
    weight = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    np.savez(folder/'patient.npz', mu=mu.numpy(), labels=labels, affine=p.labels.affine, weight=weight.numpy())
    return mu, torch.from_numpy(labels), weight, p.labels.spacing

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--peer-python', type=Path); ap.add_argument('--runs', type=int, default=7); ap.add_argument('--threads', type=int, default=2); ap.add_argument('--worker', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.worker: peer(a.worker, a.threads); raise SystemExit
    if a.peer_python is None or not a.peer_python.exists(): raise SystemExit(f'--peer-python: found {a.peer_python}, needed the python of an environment with torch and diffdrr')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        calls, exact = ours(*patient_files(folder), a.threads)
        with subprocess.Popen([a.peer_python, __file__, '--worker', folder/'patient.npz', '--threads', str(a.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            while (line := worker.stdout.readline().strip()) != 'ready':
                if not line and worker.poll() is not None: raise SystemExit('the peer did not start; its message stands above')
            theirs = {k: torch.from_numpy(v) for k, v in np.load(folder/'peer.npz').items()}
            def ask(task): worker.stdin.write(task + '\n'); worker.stdin.flush(); return json.loads(worker.stdout.readline())
            times = {(who, t): [] for t in calls for who in ('DiffDRR', 'ours')}
            for i in range(a.runs + 1):
                for t in calls:
                    pair = ask(t), clock(calls[t])
                    if i: [times[who, t].append(s) for who, s in zip(('DiffDRR', 'ours'), pair)]   # the first round warms up
            worker.stdin.close()
    far = lambda x, y: float((x - y).abs().sum()/y.abs().sum())
    for t in ('forward', 'labels'):
        same, model = far(exact[t], theirs[t]), far(calls[t](), exact[t])
        print(f'{t}: our exact sum differs from DiffDRR by {same:.1e}, Joseph from the exact sum by {model:.2%}')
        assert same < 2e-3 and model < (.015 if t == 'forward' else .05), 'the two do not compute the same'
    for t in calls:
        wall, cpu = [{who: statistics.median(s[k] for s in times[who, t]) for who in ('DiffDRR', 'ours')} for k in (0, 1)]
        print(f'{t:8s} DiffDRR {wall["DiffDRR"]:.3f} s, ours {wall["ours"]:.4f} s: {wall["DiffDRR"]/wall["ours"]:.1f} times as fast (processor time {cpu["DiffDRR"]/cpu["ours"]:.1f}); goal {GOALS[t]}')
