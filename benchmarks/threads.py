"""What a step of M5 (size small, one slice of each domain) takes on one thread and on two, with the machine idle and beside a process that keeps one core busy.

    python benchmarks/threads.py            a minute on two CPU cores
"""
import argparse, subprocess, sys, time
import torch
from xmodseg.core import Bag
from xmodseg.loop import Loop
from xmodseg.sadn import sadn

def step_ms(threads, steps):
    "Mean milliseconds of a step."
    torch.set_num_threads(threads); torch.manual_seed(0)
    b = Bag(x_l=torch.rand(1, 1, 64, 64)*2 - 1, x_h=torch.rand(1, 1, 64, 64)*2 - 1, y_h=(torch.rand(1, 1, 64, 64) > .8).float(), name=['noise'])
    loop = Loop(sadn('M5', 'small'), device='cpu')
    for k in range(3): loop.step(k, b)
    t0 = time.perf_counter()
    for k in range(steps): loop.step(k, b)
    return 1000*(time.perf_counter() - t0)/steps

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=40)
    a = ap.parse_args()
    for beside in (False, True):
        busy = subprocess.Popen([sys.executable, '-c', 'while True: pass']) if beside else None
        try:
            for threads in (1, 2): print(f'{"beside a busy process" if beside else "idle":22} {threads} thread{"s"*(threads > 1):2} {step_ms(threads, a.steps):5.0f} ms a step', flush=True)
        finally:
            if busy: busy.kill()
