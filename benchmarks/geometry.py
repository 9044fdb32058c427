"""Exact point-to-surface distance and ICP against trimesh: same distances, same motion, and how long each takes. Needs `pip install trimesh rtree`.

    python benchmarks/geometry.py [--points 20000] [--icp-points 2000] [--off 1.0] [--runs 5]

Medians of interleaved runs on one thread. Both search trees are built before the clock starts. Both ICPs take their own number of steps to a misfit below 0.005 mm, from
the same pose and onto the same triangles, neither may mirror or scale; the misfit is measured for both by the exact distance.
"""
import argparse, statistics, time
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from xmodseg.geometry import surface
from xmodseg.implicit import draw_params, spine, vertebra_sdf
from xmodseg.rigid import icp

def vertebra(side, mm):
    "A lumbar vertebra on side^3 voxels, as a binary mask gives it."
    v = spine(draw_params(3))[14]
    c = v.centre_mm + v.axes @ np.array([0., -20, -5])
    g = (torch.arange(side, dtype=torch.float32) - side/2)*mm
    s = vertebra_sdf(v, [g[:, None, None] + float(c[0]), g[None, :, None] + float(c[1]), g[None, None] + float(c[2])])[0]
    return surface(s.numpy() < 0, (mm,)*3)

def on(s, n, rng):
    "Points spread evenly by area."
    size = np.linalg.norm(s.normals, axis=1)
    return np.einsum('nk,nkd->nd', rng.dirichlet((1, 1, 1), n), s.corners[rng.choice(len(size), n, p=size/size.sum())])

def seconds(f):
    t = time.perf_counter(); f()
    return time.perf_counter() - t

def medians(calls, runs):
    "Milliseconds of each call; the calls take turns."
    times = {k: [] for k in calls}
    for _ in range(runs):
        for k, f in calls.items(): times[k].append(seconds(f))
    return {k: 1e3*statistics.median(t) for k, t in times.items()}

def distances(s, mesh, points, runs):
    theirs = mesh.nearest.on_surface(points)[1]   # also the warm-up
    ours = s.nearest(points).distance
    assert abs(ours - theirs).max() < 1e-4 and (ours - theirs).max() < 1e-9, abs(ours - theirs).max()   # trimesh gives up some digits, ours are never larger
    ms = medians(dict(ours=lambda: s.nearest(points), trimesh=lambda: mesh.nearest.on_surface(points)), runs)
    corners = mesh.kdtree.query(points)[0]
    print(f"point-to-surface: ours {ms['ours']:.0f} ms, trimesh {ms['trimesh']:.0f} ms, ratio {ms['ours']/ms['trimesh']:.2f} (goal 0.60); "
          f"largest difference {abs(ours - theirs).max():.0e} mm; corners only would say {corners.mean()/ours.mean() - 1:.1%} more")

def motions(s, mesh, n, runs, rng, good=5e-3):
    from trimesh.registration import icp as icp_of_trimesh
    truth, R, t = on(s, n, rng), Rotation.from_rotvec(np.radians([6, -5, 7])).as_matrix(), np.array([3., -2, 4])
    moved, still = (truth - t) @ R, dict(R=np.eye(3), t=np.zeros(3))
    rmse = lambda x: np.sqrt(np.mean(s.nearest(x).distance**2))
    theirs = lambda k: icp_of_trimesh(moved, mesh, threshold=0, max_iterations=k, reflection=False, scale=False)
    steps, x = 0, moved
    while rmse(x) >= good: steps, x = steps + 1, icp_of_trimesh(x, mesh, threshold=0, max_iterations=1, reflection=False, scale=False)[1]
    mine = {step: int(np.argmax(icp(moved, s, still, step=step).history.rmse < good)) for step in ('plane', 'point')}
    calls = {step: (lambda k=k, step=step: icp(moved, s, still, iterations=k, step=step)) for step, k in mine.items()} | dict(trimesh=lambda: theirs(steps))
    ends = {step: moved @ calls[step]().R.T + calls[step]().t for step in mine} | dict(trimesh=theirs(steps)[1])
    for k, y in ends.items(): assert rmse(y) < good and abs(y - truth).max() < .1, (k, rmse(y), abs(y - truth).max())
    ms = medians(calls, runs)
    for step, k in mine.items():
        print(f"ICP, {step} step: {k} steps, {ms[step]:.0f} ms, misfit {rmse(ends[step]):.1e} mm; trimesh: {steps} steps, {ms['trimesh']:.0f} ms, misfit {rmse(ends['trimesh']):.1e} mm; "
              f"ratio {ms[step]/ms['trimesh']:.3f} (goal 0.35)")

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--side', type=int, default=128); ap.add_argument('--mm', type=float, default=.795); ap.add_argument('--points', type=int, default=20000)
    ap.add_argument('--icp-points', type=int, default=2000); ap.add_argument('--off', type=float, default=1., help='mm, deviation of the points from the surface')
    ap.add_argument('--runs', type=int, default=5)
    a = ap.parse_args()
    try: import rtree, trimesh
    except ImportError: raise SystemExit('the peer is not installed: pip install trimesh rtree')
    torch.set_num_threads(1)
    rng, s = np.random.default_rng(0), vertebra(a.side, a.mm)
    mesh = trimesh.Trimesh(s.points, s.faces, process=False)
    assert mesh.is_watertight == s.closed and abs(mesh.volume - s.volume) < 1e-6*s.volume and abs(mesh.area - s.area) < 1e-6*s.area
    print(f'{len(s.faces)} triangles, {a.points} points {a.off} mm off, {a.icp_points} in ICP, medians of {a.runs}, one thread')
    distances(s, mesh, on(s, a.points, rng) + rng.normal(0, a.off, (a.points, 3)), a.runs)
    motions(s, mesh, a.icp_points, max(1, a.runs//2), rng)
