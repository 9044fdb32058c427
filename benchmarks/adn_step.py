"""One optimisation step of M0 (ADN) against the official ADN code, whose checkout is an argument and stays outside this repository.

    git clone https://github.com/liaohaofu/adn ADN
    python benchmarks/adn_step.py ADN [--sides 64 128] [--base 64] [--runs 5] [--bf16]

Same layers, widths, discriminators and batch (1); float32, and ours in bf16 with --bf16. Runs are interleaved and medians printed: the ratio matters, not the seconds.
"""
import argparse, statistics, sys, time, types
from pathlib import Path
import torch
from xmodseg.core import Bag, count_params
from xmodseg.game import Loop
from xmodseg.sadn import SADN

def official(folder, base):
    "The official trainer, with the two changes it needs to run on a current torch."
    import yaml
    from torch.autograd import _unsafe_preserve_version_counter
    vision = types.ModuleType('torchvision'); vision.utils = types.ModuleType('torchvision.utils')
    vision.utils.make_grid = None   # it only draws with it, and torchvision does not load beside every torch
    sys.modules.update({'torchvision': vision, 'torchvision.utils': vision.utils})
    sys.path.insert(0, str(folder))
    from adn.models import ADNTrain
    o = yaml.safe_load((Path(folder)/'config'/'adn.yaml').read_text())
    m = o['model'] | dict(adn=o['model']['adn'] | dict(base_ch=base), nlayer=o['model']['nlayer'] | dict(ndf=base))
    trainer = ADNTrain({k: float(v) for k, v in o['learn'].items()}, o['loss'], **m)
    for d in (trainer.model_dl, trainer.model_dh):   # it steps D between G's forward and backward, which torch now refuses
        opt, step = d._optimizer, d._optimizer.step
        params = tuple(d.parameters())
        def quiet(step=step, params=params):
            with _unsafe_preserve_version_counter(params): step()
        opt.step = quiet
    return trainer

def ours(base, precision):
    "Our loop around row M0 with the official widths and weights."
    net = SADN('M0', base=base, n_res=4, n_disc=2, weights=dict(rec=20., self=20., art=20.))
    return Loop(net, precision, 1, 'cpu', lambda step: 1., 0)

def clock(f):
    t = time.perf_counter(); f()
    return time.perf_counter() - t

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('checkout', type=Path); ap.add_argument('--sides', type=int, nargs='+', default=[64, 128]); ap.add_argument('--base', type=int, default=64)
    ap.add_argument('--runs', type=int, default=5); ap.add_argument('--bf16', action='store_true'); ap.add_argument('--threads', type=int, default=2)
    a = ap.parse_args()
    if not (a.checkout/'config'/'adn.yaml').exists(): raise SystemExit(f'{a.checkout}: found no config/adn.yaml, needed a checkout of liaohaofu/adn')
    torch.set_num_threads(a.threads)
    theirs, mine = official(a.checkout, a.base), {'float32': ours(a.base, 'no')} | ({'bf16': ours(a.base, 'bf16')} if a.bf16 else {})
    print(f'official: {count_params(theirs.model_g)/1e6:.2f} M generator parameters, ours {count_params(mine["float32"].game)/1e6:.2f} M with both discriminators')
    for side in a.sides:
        b = Bag(x_l=torch.rand(1, 1, side, side)*2 - 1, x_h=torch.rand(1, 1, side, side)*2 - 1, y_h=torch.zeros(1, 1, side, side))
        calls = {'official': lambda: theirs.optimize(b.x_l, b.x_h), **{k: (lambda m=m: m.step(0, b)) for k, m in mine.items()}}
        times = {k: [] for k in calls}
        for i in range(a.runs + 1):
            for k, f in calls.items():
                t = clock(f)
                if i: times[k].append(t)   # the first round warms up
        med = {k: statistics.median(v) for k, v in times.items()}
        print(f'{side}x{side}: ' + ', '.join(f'{k} {v:.3f} s' for k, v in med.items()) + ''.join(f'; {k} / official = {med[k]/med["official"]:.2f}' for k in mine))
