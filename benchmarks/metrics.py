"""Surface distances and Dice against MONAI: same values, and how long each takes. Medians of interleaved runs; needs `pip install monai`.

    python benchmarks/metrics.py [--side 128] [--runs 9]
"""
import argparse, statistics, time, warnings
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from xmodseg.metrics import dice, surface_distances

def organ(side, seed):
    "A blob with a bumpy surface, about a fifth of the volume."
    g = np.indices((side,)*3)/side - .5
    bumps = gaussian_filter(np.random.default_rng(seed).normal(size=(side,)*3), side/20)
    return np.sqrt((g**2).sum(0)) + .02*bumps/bumps.std() < .36

def monai_calls(a, b):
    "MONAI's functions on the same pair, each a call without arguments."
    warnings.simplefilter('ignore')
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
    p, y = (torch.from_numpy(m)[None, None] for m in (a, b))
    kw = dict(include_background=True, spacing=(1., 1., 2.))
    return dict(hd=lambda: compute_hausdorff_distance(p, y, **kw), hd95=lambda: compute_hausdorff_distance(p, y, percentile=95, **kw),
                assd=lambda: compute_average_surface_distance(p, y, symmetric=True, **kw), dice=lambda: compute_dice(p, y))

def seconds(f):
    t = time.perf_counter(); f()
    return time.perf_counter() - t

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--side', type=int, default=128); ap.add_argument('--runs', type=int, default=9)
    args = ap.parse_args()
    torch.set_num_threads(1)
    a, b = organ(args.side, 1), organ(args.side, 2)
    try: theirs = monai_calls(a, b)
    except ImportError: raise SystemExit('the peer is not installed: pip install monai')
    ours = dict(distances=lambda: surface_distances(a, b, (1., 1., 2.)), dice=lambda: dice(a, b))
    values = dict(ours['distances'](), dice=ours['dice']())
    for k, call in theirs.items():   # also the warm-up
        assert abs(float(call()) - values[k]) < 1e-5*max(1, values[k]), (k, float(call()), values[k])
    times = {k: [] for k in ('distances', 'our dice', *theirs)}
    for _ in range(args.runs):
        for k, call in theirs.items(): times[k].append(seconds(call))
        for k, name in (('distances', 'distances'), ('dice', 'our dice')): times[name].append(seconds(ours[k]))
    ms = {k: 1e3*statistics.median(v) for k,v in times.items()}
    three = ms['hd'] + ms['hd95'] + ms['assd']
    print(f'{args.side}^3, {a.mean():.0%} foreground, medians of {args.runs}, one thread; values agree')
    print(f"HD + HD95 + ASSD: {ms['distances']:.1f} ms in one call; MONAI {three:.1f} ms in three; ratio {ms['distances']/three:.3f} (goal 0.25)")
    print(f"Dice: {ms['our dice']:.2f} ms; MONAI {ms['dice']:.2f} ms; ratio {ms['our dice']/ms['dice']:.3f} (goal 0.10)")
