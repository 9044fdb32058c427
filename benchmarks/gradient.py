"""Gradient correlation, forward and backward, against kornia's gradients and against three dense convolutions: same values, and how long each takes.

    python -m venv kornia-env && kornia-env/bin/pip install torch kornia
    python benchmarks/gradient.py --peer-python kornia-env/bin/python [--size 256 128 48] [--runs 9] [--threads 2]

The peer runs in an environment of its own and waits between its turns. Runs are interleaved and medians printed: the ratio matters, not the milliseconds.
"""
import argparse, functools, statistics, subprocess, tempfile, time
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from xmodseg.gradient import gradient_correlation

def plain_ncc(p, q, eps=1e-8):
    "The equation as it stands, on (B,C,n)."
    p, q = (t - t.mean(-1, keepdim=True) for t in (p, q))
    return ((p*q).sum(-1)*((p*p).sum(-1)*(q*q).sum(-1) + eps).rsqrt()).mean()

def dense_sobel(a, b):
    "Three convolutions with 27 weights each: what one writes first."
    s, d = torch.tensor([1., 2., 1.]), torch.tensor([-1., 0., 1.])
    kernels = [torch.einsum('i,j,k->ijk', *[d if k == i else s for k in range(3)])[None, None]/32 for i in range(3)]
    grad = lambda x: [F.conv3d(F.pad(x, [1]*6, 'replicate'), k).flatten(2) for k in kernels]
    return sum(plain_ncc(p, q) for p, q in zip(grad(a), grad(b)))/3

peer = '''
import sys, time, numpy as np, torch
from kornia.filters import SpatialGradient3d
torch.set_num_threads(int(sys.argv[2]))
a, b = (torch.from_numpy(v) for v in np.load(sys.argv[1])); b.requires_grad_()
grad = SpatialGradient3d('diff')
def ncc(p, q):
    p, q = (t - t.mean(-1, keepdim=True) for t in (p, q))
    return ((p*q).sum(-1)*((p*p).sum(-1)*(q*q).sum(-1) + 1e-8).rsqrt()).mean()
for line in sys.stdin:
    b.grad, t = None, time.perf_counter()
    gc = ncc(grad(a)[:, 0].flatten(2), grad(b)[:, 0].flatten(2)); (1 - gc).backward()
    print(time.perf_counter() - t, gc.item(), b.grad.norm().item(), flush=True)
'''

class Peer:
    "One turn of kornia in its own process: seconds, value, norm of the gradient."
    def __init__(self, python, file, threads):
        self.p = subprocess.Popen([python, '-c', peer, str(file), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def __call__(self):
        self.p.stdin.write('go\n'); self.p.stdin.flush()
        line = self.p.stdout.readline()
        if not line: raise SystemExit('the peer ended: found no answer, needed an environment with torch and kornia behind --peer-python')
        return tuple(map(float, line.split()))

def turn(score, a, b):
    "One forward and backward pass: seconds, value, norm of the gradient."
    b.grad, t = None, time.perf_counter()
    gc = score(a, b).mean(); (1 - gc).backward()
    return time.perf_counter() - t, gc.item(), b.grad.norm().item()

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--peer-python', help='python of an environment with kornia; without it only the convolutions are compared'); ap.add_argument('--size', type=int, nargs=3, default=[256, 128, 48])
    ap.add_argument('--runs', type=int, default=9); ap.add_argument('--threads', type=int, default=2)
    o = ap.parse_args()
    torch.set_num_threads(o.threads); torch.manual_seed(0)
    a = F.avg_pool3d(torch.randn(1, 1, *o.size), 3, 1, 1); b = (.5*a + F.avg_pool3d(torch.randn_like(a), 3, 1, 1)).requires_grad_()
    calls = {k: functools.partial(turn, f, a, b) for k, f in {'central': functools.partial(gradient_correlation, kind='central'), 'sobel': gradient_correlation, 'dense sobel': dense_sobel}.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'pair.npy'
        np.save(file, np.stack([a.numpy(), b.detach().numpy()]))
        if o.peer_python: calls['kornia'] = Peer(o.peer_python, file, o.threads)
        times, last = {k: [] for k in calls}, {}
        for i in range(o.runs + 1):
            for k, f in calls.items():
                seconds, *last[k] = f()
                if i: times[k].append(1e3*seconds)   # the first round warms up
    same = lambda k, l: all(abs(x - y) < 1e-4*abs(y) for x, y in zip(last[k], last[l])) or exit(f'{k} and {l} disagree: {last[k]} and {last[l]}')
    med = {k: statistics.median(v) for k, v in times.items()}
    print(f'{"x".join(map(str, o.size))}, forward and backward, {o.threads} threads, medians of {o.runs}: ' + ', '.join(f'{k} {v:.1f} ms' for k, v in med.items()))
    for mine, theirs, goal in (('central', 'kornia', .35), ('sobel', 'dense sobel', .1)):
        if theirs in calls and same(mine, theirs): print(f'{mine} / {theirs} = {med[mine]/med[theirs]:.3f} (goal {goal}); values and gradients agree to 1e-4')
