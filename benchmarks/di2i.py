"""One training step of DI2I with its maps pixel by pixel (channels last) against the same net with map after map: same weights, same values, and how long each takes.

    python benchmarks/di2i.py [--side 96] [--batch 4] [--runs 9] [--threads 1]

A step is a forward and a backward pass of the small net. Runs are interleaved and medians printed: the ratio matters, not the seconds.
"""
import argparse, copy, statistics, time
import torch
from xmodseg.segmentors import DI2I
from xmodseg.shape import di2i_loss
from xmodseg.tdgan import SIZES

def step(net, x, y, half=False):
    "Seconds of a forward and a backward pass, and the loss."
    net.zero_grad(set_to_none=True)
    t = time.perf_counter()
    with torch.autocast('cpu', torch.bfloat16, enabled=half): loss = di2i_loss(net(x), y)
    loss.backward()
    return time.perf_counter() - t, loss.item()

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(side=96, batch=4, runs=9, threads=1).items(): ap.add_argument(f'--{name}', type=int, default=value)
    a = ap.parse_args()
    torch.set_num_threads(a.threads); torch.manual_seed(0)
    ours = DI2I(**SIZES['small']['task'], dropout=0.)
    plain = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    x, y = torch.rand(a.batch, 1, a.side, a.side)*2 - 1, (torch.rand(a.batch, 4, a.side, a.side) > .6).float()
    ways = dict(plain=(plain, False), ours=(ours, False), ours_bf16=(ours, True), plain_bf16=(plain, True))
    times = {k: [] for k in ways}
    for _ in range(a.runs + 1):
        losses = {}
        for k, (net, half) in ways.items():
            seconds, losses[k] = step(net, x, y, half); times[k].append(seconds)
    assert abs(losses['ours'] - losses['plain']) < 1e-4*losses['plain'], losses
    middle = {k: statistics.median(v[1:]) for k, v in times.items()}
    print(f'{a.batch} films of {a.side} px, {a.threads} threads, median of {a.runs}: ' + ', '.join(f'{k} {v:.3f} s ({v/middle["plain"]:.2f})' for k, v in middle.items()))
