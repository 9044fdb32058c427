"Scores by value: closed forms, brute force, the empty rules, the refusals."
import numpy as np
import pytest
import torch
from xmodseg.core import Bag, XModSegError
from xmodseg.metrics import (dice, edge_band, gap_closed, hausdorff, lesion_rates, lesion_scores, lesion_sweep, lesion_totals,
                             multi_dice, s_score, summary, surface_distances, translation_scores)

def brute(a, b, mm):
    "Every surface voxel against every other, with loops where the module has none."
    def surface(m):
        on = []
        for v in map(tuple, np.argwhere(m)):
            steps = [tuple(np.array(v) + s*np.eye(m.ndim, dtype=int)[k]) for k in range(m.ndim) for s in (-1, 1)]
            if any(min(w) < 0 or any(np.array(w) >= m.shape) or not m[w] for w in steps): on.append(v)
        return np.array(on)*np.array(mm)
    d = np.sqrt(((surface(a)[:, None] - surface(b)[None])**2).sum(-1))
    ab, ba = d.min(1), d.min(0)
    return max(ab.max(), ba.max()), max(np.percentile(ab, 95), np.percentile(ba, 95)), np.r_[ab, ba].mean()

@pytest.mark.parametrize('seed', range(20))
def test_METRIC_E3_E4_E5_equal_brute_force(seed):
    r = np.random.default_rng(seed)
    for _ in range(50):
        shape = r.integers(1, 8, r.integers(2, 4))
        a, b, mm = r.random(shape) < r.random(), r.random(shape) < r.random(), r.uniform(.3, 3, len(shape))
        if not (a.any() and b.any()): continue
        d = surface_distances(a, b, mm)
        np.testing.assert_allclose([d.hd, d.hd95, d.assd], brute(a, b, mm), atol=1e-9)
        assert not d.empty

def test_METRIC_E3_tree_and_map_agree_on_large_and_ragged_masks():
    r = np.random.default_rng(0)
    i = np.indices((20, 40, 40)) - 20
    smooth, ragged = np.sqrt((i**2).sum(0)) < 15, r.random((20, 40, 40)) < .3
    for a, b in ((smooth, np.roll(smooth, 3, 1)), (smooth, ragged), (ragged, smooth)):
        d, slow = surface_distances(a, b, (2, 1, .5)), _cdist(a, b, (2, 1, .5))
        np.testing.assert_allclose([d.hd, d.hd95, d.assd], slow, atol=1e-9)

def _cdist(a, b, mm):
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree
    e = [np.argwhere(m & ~binary_erosion(m))*np.array(mm) for m in (a, b)]
    ab, ba = cKDTree(e[1]).query(e[0])[0], cKDTree(e[0]).query(e[1])[0]
    return max(ab.max(), ba.max()), max(np.percentile(ab, 95), np.percentile(ba, 95)), np.r_[ab, ba].mean()

def test_METRIC_E3_needs_both_directions():
    whole = np.zeros((20, 5), bool); whole[2:18, 1:4] = True
    part = whole.copy(); part[8:] = False
    assert hausdorff(part, whole, (2, 1)) == hausdorff(whole, part, (2, 1)) == 20.   # from row 17 to row 7, 2 mm each

def test_METRIC_E3_spacing_follows_its_axis():
    a, b = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    a[2, 3, 4] = b[4, 3, 4] = True
    assert [hausdorff(a, b, s) for s in ((3, 1, 1), (1, 3, 1), (1, 1, 3))] == [6., 2., 2.]

def test_empty_masks_by_rule():
    no, yes = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert surface_distances(no, no, (1, 1)) == Bag(hd=0., hd95=0., assd=0., empty=False)
    for pair in ((no, yes), (yes, no)): assert surface_distances(*pair, (1, 1)) == Bag(hd=5., hd95=5., assd=5., empty=True)
    assert [dice(no, no), dice(no, yes), dice(yes, no)] == [1., 0., 0.]

def test_a_missed_structure_cannot_improve_a_mean():
    r = np.random.default_rng(3)
    for _ in range(200):
        shape, mm = tuple(r.integers(2, 9, 3)), r.uniform(.5, 3, 3)
        p, y = r.random(shape) < r.random()**3, r.random(shape) < .2
        if not (p.any() and y.any()): continue
        found, missed = surface_distances(p, y, mm), surface_distances(np.zeros(shape), y, mm)
        assert all(missed[k] > found[k] for k in ('hd', 'hd95', 'assd')) and dice(np.zeros(shape), y) <= dice(p, y)
    table = summary([found, missed])
    assert table.empty.total == 1 and table.hd.n == 2

def test_METRIC_E1_values_and_types():
    p, y = np.array([1, 1, 1, 0, 0, 0]), np.array([0, 1, 1, 1, 1, 0])
    assert dice(p, y) == 4/7
    for kind in (bool, np.uint8, np.int64, np.float16, np.float32): assert dice(p.astype(kind), y.astype(kind)) == 4/7
    for kind in (torch.bool, torch.int8, torch.bfloat16, torch.float64): assert dice(torch.tensor(p).to(kind), torch.tensor(y).to(kind)) == 4/7

@pytest.mark.parametrize('p,y,words', [
    (np.ones((4, 4)), np.ones((4, 1)), r'\(4, 4\) and \(4, 1\)'), (np.full(3, .4), np.ones(3), '0.4'), (np.array([np.nan, 1]), np.ones(2), 'nan'),
    (np.array([-1, 0]), np.ones(2), '-1'), (np.array([2, 0]), np.ones(2), '2'), (np.array([255, 0], np.uint8), np.ones(2), '255'),
    (np.zeros((0, 3)), np.zeros((0, 3)), 'array of numbers'), (object(), np.ones(2), 'array of numbers'), (np.array([np.inf]), np.ones(1), 'inf')])
def test_METRIC_E1_refuses(p, y, words):
    with pytest.raises(XModSegError, match=words): dice(p, y)
    with pytest.raises(XModSegError, match=words): surface_distances(p, y, (1,)*np.ndim(p))

@pytest.mark.parametrize('mm', [(1,), (1, 1, 1), (1, 0), (1, -2), (1, float('nan')), 1.])
def test_spacing_is_checked(mm):
    with pytest.raises(XModSegError, match='spacing'): surface_distances(np.ones((3, 3)), np.ones((3, 3)), mm)

def test_spacing_is_required():
    with pytest.raises(TypeError): surface_distances(np.ones((3, 3)), np.ones((3, 3)))

def test_METRIC_E2_mean_over_the_task_and_unknown_labels():
    p, y = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    d = multi_dice(p, y, dict(a=1, b=2, c=3))
    assert d.each == dict(a=2/3, b=2/3, c=1.) and abs(d.mean - 7/9) < 1e-12
    assert multi_dice(torch.tensor(p), torch.tensor(y), [1, 2]).mean == 2/3
    for none in ([], {}, [0, 1, 2], dict(air=0, a=1), [1.7]):
        with pytest.raises(XModSegError, match='no foreground classes'): multi_dice(p, y, none)
    for bad in (np.array([0, 1, 1, 9]), np.array([0, 1, 1, .5])):
        with pytest.raises(XModSegError, match='unexpected label'): multi_dice(bad, y, [1, 2])

def test_METRIC_E6_matching_does_not_depend_on_numbering():
    y, p = np.zeros((9, 30), bool), np.zeros((9, 30), bool)
    y[2:5, 2:8] = True; y[2:5, 10:16] = True
    p[2:5, 6:12] = True          # touches both lesions ...
    p[2:5, 2:4] = True           # ... while this one touches only the first: taken greedily, one match could be lost
    for flip in (slice(None), slice(None, None, -1)): assert lesion_scores(p[:, flip], y[:, flip], .1, centre=False).tp == 2

def test_METRIC_E6_3d_corners_threshold_and_centre():
    y = np.zeros((6, 6, 6), bool); y[1, 1, 1] = y[2, 2, 2] = True
    assert lesion_scores(y, y).tp == 1
    big, dot = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    big[1:8, 1:8] = True; dot[4, 4] = True
    assert lesion_scores(dot, big).tp == 1 and lesion_scores(dot, big, centre=False).tp == 0
    dot[:] = False; dot[1, 1] = True
    assert lesion_scores(dot, big) == Bag(tp=0, fp=1, fn=1, precision=0., recall=0.)

def test_METRIC_E6_sweep_never_rises_and_totals_add():
    r = np.random.default_rng(1)
    y, p = (np.kron(r.random((2, 12, 12)) < .2, np.ones((1, 3, 3)))[k] for k in (0, 1))
    found = [s.tp for s in lesion_sweep(p, y, (.05, .1, .2, .4, .8)).values()]
    assert found == sorted(found, reverse=True) and found[0] > 0
    assert lesion_totals([lesion_rates(2, 1, 0), lesion_rates(0, 1, 2)]) == Bag(tp=2, fp=2, fn=2, precision=.5, recall=.5)
    assert lesion_rates(0, 3, 0) == Bag(tp=0, fp=3, fn=0, precision=0., recall=0.)
    with pytest.raises(XModSegError, match='no image to add up'): lesion_totals([])
    for bad in (0, -1, 1.1):
        with pytest.raises(XModSegError, match='min_iou'): lesion_scores(p, y, bad)

def test_METRIC_E6_false_alarms_are_not_misses_and_precision_is_not_recall():
    y, p = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    y[1:3, 1:3] = y[1:3, 8:10] = True
    p[1:3, 1:3] = p[6, 1] = p[8, 5] = p[10, 10] = True                                   # one found, three false alarms, one missed
    assert lesion_scores(p, y) == Bag(tp=1, fp=3, fn=1, precision=.25, recall=.5)
    assert lesion_scores(p, 0*y) == Bag(tp=0, fp=4, fn=0, precision=0., recall=0.)
    assert lesion_scores(0*p, y) == Bag(tp=0, fp=0, fn=2, precision=0., recall=0.)
    assert lesion_rates(3, 1, 0) == Bag(tp=3, fp=1, fn=0, precision=.75, recall=1.)

def test_METRIC_E7_E8_E10_closed_forms():
    t = np.random.default_rng(0).normal(0, 50, (9, 10, 11))
    s = translation_scores(t - 30, t, range=(-1000, 2000))
    assert abs(s.mae - 30) < 1e-9 and abs(s.psnr - 40) < 1e-9 and abs(s.ncc - 1) < 1e-12     # 3000/30 = 100: 40 dB
    assert abs(translation_scores(7 - 2*t, t, range=(0, 1)).ncc + 1) < 1e-12
    assert translation_scores(t, t, range=(0, 1)).psnr == float('inf')

def test_METRIC_E9_ssim_uses_the_given_range():
    t = np.random.default_rng(0).random((16, 16))
    narrow, wide = (translation_scores(t + .1*t[::-1], t, range=r).ssim for r in ((0, 1), (0, 100)))
    assert narrow < wide < 1

def test_METRIC_E9_ssim_of_one_window_by_hand():
    x, t = np.random.default_rng(5).random((2, 7, 7))
    (vx, c), (_, vt) = np.cov(x.ravel(), t.ravel())
    c1, c2 = (.01*3)**2, (.03*3)**2
    want = (2*x.mean()*t.mean() + c1)*(2*c + c2)/((x.mean()**2 + t.mean()**2 + c1)*(vx + vt + c2))
    assert translation_scores(x, t, range=(-1, 2)).ssim == pytest.approx(want, abs=1e-9)

@pytest.mark.parametrize('n,a,b', [(9, .1, .3), (10, .1, .7), (33, .1, .7), (64, .3, .7), (50, -1000.1, .1)])
def test_METRIC_E10_flat_images_resemble_nothing(n, a, b):
    flat, busy = np.full((n, n), a), np.random.default_rng(0).normal(5, 1, (n, n))
    for x, t in ((flat, np.full((n, n), b)), (flat, flat), (flat, busy), (busy, flat)): assert translation_scores(x, t, range=(0, 1)).ncc == 0

def test_one_image_at_a_time_and_no_axis_is_lost():
    t = np.random.default_rng(0).random((8, 8))
    assert translation_scores(t[None, None], t, t[None] > .5, range=(0, 1)).mae == 0 == translation_scores(t[..., None], t[..., None], range=(0, 1)).mae
    for x, y in ((t[None], t[..., None]), (t[:, None], t)):
        with pytest.raises(XModSegError, match='one grid'): translation_scores(x, y, range=(0, 1))
    for batch in (np.stack([t, t])[:, None], np.ones((2, 1, 8, 8, 8)), np.ones((2, 2, 8, 8, 8))):
        with pytest.raises(XModSegError, match='score each image of a batch, then average with `summary`'): translation_scores(batch, batch, range=(0, 1))
    assert translation_scores(np.ones((1, 1, 8, 8, 8)), np.ones((8, 8, 8)), range=(0, 1)).mae == 0

@pytest.mark.parametrize('width', [0, -1, 1.5])
def test_METRIC_E11_a_band_has_a_width(width):
    with pytest.raises(XModSegError, match='no width'): edge_band(np.eye(8), width)

def test_METRIC_E11_band_is_two_wide_and_ignores_the_frame():
    half = np.zeros((12, 12), bool); half[:6] = True
    assert np.flatnonzero(edge_band(half).all(1)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(edge_band(half, 1).all(1)).tolist() == [5, 6]
    x = np.zeros((12, 12)); x[5] = 8.
    assert translation_scores(x, 0*x, half, range=(0, 1)).edge_mae == 2.

@pytest.mark.parametrize('change,words', [(dict(range=(1, 1)), 'range'), (dict(range=(0,)), 'range'), (dict(range=(0, np.inf)), 'range'),
    (dict(bone=np.zeros((8, 8)), range=(0, 1)), 'no bone edge'), (dict(bone=np.eye(7), range=(0, 1)), 'one grid'), (dict(bone=np.full((8, 8), .5), range=(0, 1)), 'not a mask')])
def test_translation_scores_refuse(change, words):
    with pytest.raises(XModSegError, match=words): translation_scores(np.eye(8), np.eye(8), **change)

def test_translation_scores_need_a_range_one_grid_and_numbers():
    with pytest.raises(TypeError): translation_scores(np.eye(8), np.eye(8))
    with pytest.raises(XModSegError, match='one grid'): translation_scores(np.eye(8), np.eye(9), range=(0, 1))
    with pytest.raises(XModSegError, match='2 NaN'): translation_scores(np.full((8, 8), 1.), np.where(np.eye(8)*[1, 1, 0, 0, 0, 0, 0, 0], np.nan, 1.), range=(0, 1))

class Judge(torch.nn.Module):
    def __init__(self): super().__init__(); self.bn = torch.nn.BatchNorm2d(1)
    def forward(self, x): self.bn(x); return torch.cat([.5 - x, x - .5], 1)

def test_METRIC_E12_s_score_uses_source_labels_and_leaves_the_judge_alone():
    judge = Judge().train()
    before = {k: v.clone() for k,v in judge.state_dict().items()}
    y = torch.zeros(3, 8, 8, dtype=torch.long); y[:, :4] = 1
    x = y[:, None].float()
    moved = x.roll(2, 2).requires_grad_()
    assert s_score(judge, x, y, dict(organ=1)).mean == 1. and s_score(judge, moved, y, dict(organ=1)).mean == .5
    assert judge.training and all(torch.equal(v, before[k]) for k,v in judge.state_dict().items()) and moved.grad is None
    for bad in (y[:2], y[:, :4], y[:, None]):
        with pytest.raises(XModSegError, match='source label'): s_score(judge, x, bad, [1])

def test_METRIC_E12_frozen_parts_of_the_judge_stay_frozen():
    judge = Judge().train(); judge.bn.eval()
    y = torch.zeros(2, 8, 8, dtype=torch.long); y[:, :4] = 1
    assert s_score(judge, y[:, None].float(), y, [1]).mean == 1 and judge.training and not judge.bn.training
    with pytest.raises(XModSegError, match='cannot read'): s_score(judge, torch.full((2, 1, 8, 8), float('nan')), y, [1])
    assert judge.training and not judge.bn.training                                      # also after a refusal

def test_METRIC_E12_a_judge_that_cannot_see_gives_no_score():
    y = torch.zeros(2, 8, 8, dtype=torch.long)
    x, deaf = y[:, None].float(), lambda f: torch.cat([.5 - f, f - .5], 1)*float('nan')
    for judge, images in ((lambda f: f - .5, x), (deaf, x), (lambda f: torch.ones(1, 2, 8, 8), x*float('nan')), (lambda f: torch.ones(1, 2, 8, 8), x + float('inf'))):
        with pytest.raises(XModSegError, match='cannot read'): s_score(judge, images, y, [1])
    with pytest.raises(XModSegError, match='source label'): s_score(deaf, x[:0], y[:0], [1])

def test_METRIC_E13_gap_formula():
    assert gap_closed(74.4, 70.3, 78.5) == pytest.approx(.5) and gap_closed(.7, .8, .9) == pytest.approx(-1)
    assert gap_closed(5., 10., 0.) == .5
    for bad in ((1, 2, 2), (float('nan'), 0, 1), (0, 0, float('inf'))):
        with pytest.raises(XModSegError, match='no gap'): gap_closed(*bad)

def test_METRIC_E14_scol_table_statistics():
    p12 = [3.68, 2.23, 2.56, 3.02, 2.73, 2.77, 2.64, 3.07, 3.15]
    p11 = [5.42, 3.23, 2.84, 3.12, 2.76, 2.23, 2.01, 2.82, 2.34, 2.89]
    p1 = [5.78, 5.48, 3.67, 3.61, 3.34, 5.47, 4.59, 3.31, 4.81]
    for rows, mean, sd in ((p12, 2.87, .39), (p11, 2.97, .90), (p1, 4.45, .93), (p12 + p11 + p1, 3.41, 1.06)):
        s = summary(rows)
        assert s.mean == pytest.approx(mean, abs=.006) and s.sd == pytest.approx(sd, abs=.006) and s.n == len(rows)
        assert np.std(rows, ddof=1) > sd + .01

def test_METRIC_E14_bags_flags_and_refusals():
    s = summary([Bag(a=1., empty=True), Bag(a=3., empty=False), Bag(a=5., empty=True, b=7.)])
    assert s.empty.total == 2 and s.a == dict(mean=3., sd=(8/3)**.5, n=3, total=9.) and s.b.n == 1
    for bad in ([], [1., float('nan')], [float('inf')]):
        with pytest.raises(XModSegError, match='cannot average'): summary(bad)
    for bad in ({12: 2.86, 11: 2.97}, Bag(a=1.), {}):
        with pytest.raises(XModSegError, match='average its names'): summary(bad)
    assert summary({12: 2.86, 11: 2.94}.values()).mean == pytest.approx(2.9)
