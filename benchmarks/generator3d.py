"""One training step of the 3D residual generator against the same net in plain torch: same weights, same values, and how long each takes.

    python benchmarks/generator3d.py [--size 64 64 32] [--base 16] [--blocks 6] [--runs 9] [--threads 2]

A step is a forward and a backward pass. Ours in float32 and in bf16 (autocast) against plain torch in float32. Runs are interleaved and medians printed: the ratio matters, not the seconds.
"""
import argparse, statistics, time
import torch
from torch import nn
from xmodseg.core import count_params
from xmodseg.generators import LightUNet3d, ResnetGenerator

class Plain(nn.Module):
    "The residual generator as one writes it first, with the weights of ours."
    def __init__(self, G):
        super().__init__()
        convs = [f for f in G.modules() if isinstance(f, nn.Conv3d)]
        copy = lambda f, **k: self.take(nn.Conv3d(f.in_channels, f.out_channels, f.kernel_size, f.stride, **k), f)
        N, mirror = (lambda f: nn.InstanceNorm3d(f.out_channels)), lambda f: dict(padding=f.kernel_size[0]//2, padding_mode='reflect')
        block = lambda f, s: [copy(f, **mirror(f)), N(f), nn.ReLU()][:s]
        self.start = nn.Sequential(*[m for f in convs[:3] for m in block(f, 3)])
        self.res = nn.ModuleList([nn.Sequential(*block(a, 3), *block(b, 2)) for a, b in zip(convs[3:-3:2], convs[4:-3:2])])
        up = lambda f: [nn.Upsample(scale_factor=2), copy(f, padding=1, padding_mode='replicate'), N(f), nn.ReLU()]
        self.end = nn.Sequential(*up(convs[-3]), *up(convs[-2]), copy(convs[-1], **mirror(convs[-1])), nn.Tanh())
    def take(self, mine, theirs):
        mine.load_state_dict(theirs.state_dict())
        return mine
    def forward(self, x):
        x = self.start(x)
        for f in self.res: x = x + f(x)
        return self.end(x)

def step(net, x, half=False):
    "Seconds of a forward and a backward pass, the result, and the gradient of every weight."
    net.zero_grad(set_to_none=True)
    t = time.perf_counter()
    with torch.autocast('cpu', torch.bfloat16, enabled=half): y = net(x)
    (y.float() - 1).square().mean().backward()
    return time.perf_counter() - t, y.detach().float(), torch.cat([p.grad.flatten() for p in net.parameters() if p.ndim > 1])

def differ(a, b): return ((a - b).norm()/b.norm()).item()

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--size', type=int, nargs=3, default=[64, 64, 32]); ap.add_argument('--base', type=int, default=16); ap.add_argument('--blocks', type=int, default=6)
    ap.add_argument('--runs', type=int, default=9); ap.add_argument('--threads', type=int, default=2); ap.add_argument('--light', action='store_true', help='also time the light U-Net')
    o = ap.parse_args()
    torch.set_num_threads(o.threads); torch.manual_seed(0)
    G, x = ResnetGenerator(o.base, o.blocks, dim=3), torch.randn(1, 1, *o.size)
    plain = Plain(G)
    calls = {'plain': lambda: step(plain, x), 'float32': lambda: step(G, x), 'bf16': lambda: step(G, x, True)}
    if o.light: L = LightUNet3d(); calls |= {'light U-Net': lambda: step(L, x), 'light U-Net bf16': lambda: step(L, x, True)}
    times, last = {k: [] for k in calls}, {}
    for i in range(o.runs + 1):
        for k, f in calls.items():
            seconds, *last[k] = f()
            if i: times[k].append(seconds)   # the first round warms up
    for k, most in (('float32', 1e-3), ('bf16', .2)):
        errors = [differ(a, b) for a, b in zip(last[k], last['plain'])]
        if max(errors) > most: raise SystemExit(f'{k} is not the same net: found relative differences {errors}, needed at most {most}')
        print(f'{k}: values differ by {errors[0]:.1e}, the gradient of all weights by {errors[1]:.1e}')
    med = {k: statistics.median(v) for k, v in times.items()}
    print(f'{"x".join(map(str, o.size))}, {count_params(G)/1e6:.2f} M parameters, {o.threads} threads, medians of {o.runs}: ' + ', '.join(f'{k} {v:.3f} s' for k, v in med.items()))
    for k, goal in (('float32', .45), ('bf16', .25)): print(f'{k} / plain = {med[k]/med["plain"]:.3f} (goal {goal})')
