"""A checkpoint of a 28M-parameter net with its Adam: `save_checkpoint` (atomic, flushed, read back and compared) against `torch.save`. Medians of interleaved runs.

    python benchmarks/checkpoint.py [--params 28e6] [--runs 7] [--folder .]
"""
import argparse, os, statistics, tempfile, time
from pathlib import Path
import torch
from torch import nn
from xmodseg.run import load_checkpoint, save_checkpoint

def trained(params, width=1024):
    "A net of so many parameters and an Adam with both its memories."
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(round(params/(width*width + width)))])
    adam = torch.optim.Adam(net.parameters())
    for p in net.parameters(): p.grad = torch.randn_like(p)
    adam.step()
    return dict(net=net.state_dict(), adam=adam.state_dict())

def seconds(f):
    os.sync()   # or our flush pays for the bytes that the call before it left in memory
    t = time.perf_counter(); f()
    return time.perf_counter() - t

def flushed(state, path):
    "torch.save, and the bytes on the disk: what a fair comparison of durability needs."
    torch.save(state, path)
    f = os.open(path, os.O_RDONLY); os.fsync(f); os.close(f)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--params', type=float, default=28e6); ap.add_argument('--runs', type=int, default=7); ap.add_argument('--folder', default='.')
    args = ap.parse_args()
    torch.set_num_threads(1)
    state = trained(args.params)
    with tempfile.TemporaryDirectory(dir=args.folder) as d:
        ours, theirs = Path(d)/'ours.safetensors', Path(d)/'theirs.pt'
        calls = {'save_checkpoint': lambda: save_checkpoint(ours, state), 'torch.save': lambda: torch.save(state, theirs), 'torch.save + fsync': lambda: flushed(state, theirs),
                 'load_checkpoint': lambda: load_checkpoint(ours), 'torch.load': lambda: torch.load(theirs)}
        times = {k: [] for k in calls}
        for i in range(args.runs + 1):
            for k, call in calls.items():
                t = seconds(call)
                if i: times[k].append(t)   # the first round warms up
        mb = ours.stat().st_size/1e6
    s = {k: statistics.median(v) for k,v in times.items()}
    print(f'{mb:.0f} MB, medians of {args.runs} interleaved runs, one thread')
    for k, v in s.items(): print(f'{k:20s} {v:.3f} s')
    print(f"save: ratio {s['save_checkpoint']/s['torch.save']:.2f} to torch.save (goal 1.2), {s['save_checkpoint']/s['torch.save + fsync']:.2f} to torch.save + fsync")
    print(f"load: ratio {s['load_checkpoint']/s['torch.load']:.2f} to torch.load")
