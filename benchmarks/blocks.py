"""What instance normalisation costs a net that sees blocks: the same generator, the same pairs and the same voxels a step, once as whole columns and once as blocks.

    python benchmarks/blocks.py [--steps 150] [--block 16 16 32] [--people 8] [--seeds 3] [--threads 1]

Paired training on purpose (chapter 31 has no pairs): what cannot be learned with the answer in hand is not learned without it. Printed: mean absolute error in [-1,1] on people held out.
"""
import argparse, math, statistics
import numpy as np
import torch
from xmodseg.column import stretch
from xmodseg.core import seed_everything
from xmodseg.generators import LightUNet3d
from xmodseg.shape import l1
from xmodseg.spines import spine_cases
from xmodseg.unpaired import blend_blocks

def pairs(people):
    "MR and CT of the same people in [-1,1]."
    both = lambda k: torch.from_numpy(np.stack([stretch(c[k], k).data for c in people]))[:, None].float()
    return both('mr'), both('ct')

def cut_blocks(x, y, block, n, rng):
    "n blocks at random places of one person, the same of both scans."
    at = [[int(rng.integers(s - b + 1)) for s, b in zip(x.shape[2:], block)] for _ in range(n)]
    return (torch.cat([v[:, :, a:a + block[0], b:b + block[1], c:c + block[2]] for a, b, c in at]) for v in (x, y))

def error_of(block, seed, learn, held, steps):
    "Train on `learn`, read `held` as it was trained: whole, or block by block."
    seed_everything(seed)
    net, rng = LightUNet3d(8), np.random.default_rng(seed)
    adam, shape = torch.optim.Adam(net.parameters(), 2e-3, (.5, .999)), learn[0].shape[2:]
    for _ in range(steps):
        i = int(rng.integers(len(learn[0])))
        x, y = (v[i:i + 1] for v in learn)
        if block: x, y = cut_blocks(x, y, block, math.prod(shape)//math.prod(block), rng)
        adam.zero_grad(); l1(net(x), y).backward(); adam.step()
    with torch.no_grad(): return l1(torch.cat([blend_blocks(x[None], net.eval(), block) for x in held[0]]), held[1]).item()

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(steps=150, people=8, seeds=3, threads=1).items(): ap.add_argument(f'--{name}', type=int, default=value)
    ap.add_argument('--block', type=int, nargs=3, default=(16, 16, 32))
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    learn, held = (pairs(spine_cases([(start + i, 70*i/n) for i in range(n)], workers=1)) for start, n in ((9500, a.people), (9700, 2)))
    for name, block in (('whole columns', None), (f'blocks {tuple(a.block)}', tuple(a.block))):
        e = [error_of(block, s, learn, held, a.steps) for s in range(a.seeds)]
        print(f'{name}: {statistics.mean(e):.3f} +- {statistics.pstdev(e):.3f}', flush=True)
