"Piles of slices and the stream of unpaired batches. Numbers in names are rows of the fault table."
from functools import partial
import itertools
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader
from xmodseg.core import XModSegError
from xmodseg.unpaired import padded, Slices, Unpaired, Varied, blend_blocks, curved, cut, join, random_crop, random_curves, refuse_shared, split_patients
from xmodseg.volume import Volume, window

rng = np.random.default_rng(0)
A = np.diag([2., 3, 4, 1])
BLOCK = Volume(rng.normal(0, 800, (9, 6, 7)), A, name='p07')


def refuses(*words, call):
    "A refusal in one sentence that holds these words, what was found and what is needed."
    with pytest.raises(XModSegError) as e: call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)


def pile(names, size=(20, 16), seed=0, y=True, **kwargs):
    "Noise slices; the mask marks the pixels above 0.5."
    r = np.random.default_rng([seed, len(names)])
    x = [r.uniform(-1, 1, size).astype(np.float32) for _ in names]
    return Slices(x, list(names), [(a > .5).astype(np.uint8) for a in x] if y else None, **kwargs)


def equal(a, b): return a.name == b.name and all(torch.equal(a[k], b[k]) for k in ('x_l', 'x_h', 'y_h'))

L, H = pile('aabb'), pile('cccddd', seed=1)
DATA = partial(Unpaired, L, H, batch=2, side=8)


# ---- piles

def test_a_pile_refuses_lists_that_do_not_fit():
    refuses('patient does not fit', '3 for 2', call=lambda: Slices([np.zeros((4, 4))]*2, list('abc')))
    refuses('y lies on another grid', '(4, 3) on (4, 4)', 'b:', call=lambda: Slices([np.zeros((4, 4))]*2, list('ab'), [np.zeros((4, 4)), np.zeros((4, 3))]))
    refuses('truth does not fit', call=lambda: Slices([np.zeros((4, 4))], ['a'], truth=[]))

def test_where_and_of_keep_every_list_in_step():
    p = Slices([np.full((2, 2), k) for k in range(5)], list('abcab'), [np.full((2, 2), 10 + k) for k in range(5)], [np.full((2, 2), 20 + k) for k in range(5)], (3., 2.))
    s = p.of(iter('ab'))                                        # an iterator is read once
    assert [int(v[0, 0]) for v in s.x] == [0, 1, 3, 4] and [int(v[0, 0]) for v in s.y] == [10, 11, 13, 14] and [int(v[0, 0]) for v in s.truth] == [20, 21, 23, 24]
    assert s.patient == list('abab') and s.spacing == (3., 2.) and len(p.of([])) == 0
    refuses('one answer per slice', call=lambda: p.where([True]*4))

@pytest.mark.parametrize('change', [dict(patient=list('aabc')), dict(spacing=(1., 2.)), dict(y=None), dict(x=[*L.x[:3], L.x[3] + 1e-3]), dict(y=[*L.y[:3], 1 - L.y[3]])])
def test_fingerprint_sees_every_change(change):
    make = lambda **k: Slices(**{**dict(x=L.x, patient=L.patient, y=L.y, spacing=L.spacing), **k}).fingerprint()
    assert make() == L.fingerprint() != make(**change)

def test_fingerprint_does_not_see_truth(): assert Slices(L.x, L.patient, L.y, [a + 1 for a in L.x]).fingerprint() == L.fingerprint()

def test_join_keeps_masks_only_where_all_have_them():
    half = pile('ee', y=False)
    assert join([L, half]).y is None and join([half, L]).y is None and len(join([L, H]).y) == 10
    assert join([L, half]).patient == list('aabbee')
    refuses('no slices to join', call=lambda: join([]))
    refuses('two sizes', '(1.0, 1.0) and (1.0, 2.0)', 'spacing=', call=lambda: join([L, pile('ee', spacing=(1., 2.))]))


# ---- cut

@pytest.mark.parametrize('axis, spacing, shape', [(0, (4., 3.), (7, 6)), (1, (4., 2.), (7, 9)), (2, (3., 2.), (6, 9))])
def test_UNPAIRED_E1_spacing_and_shape_are_rows_first(axis, spacing, shape):
    s = cut(BLOCK, axis=axis)
    assert s.spacing == spacing and s.x[0].shape == shape and len(s) == BLOCK.shape[axis]

def test_UNPAIRED_E1_sagittal_head_up_front_left():
    s = cut(BLOCK, hu=(-2000, 2000))
    for k, r, c in ((0, 0, 0), (3, 2, 4), (8, 6, 5)): assert s.x[k][r, c] == pytest.approx(np.clip(BLOCK.data[k, 5 - c, 6 - r], -2000, 2000)/2000, abs=1e-6)

@pytest.mark.parametrize('flips', [(), (0,), (1, 2), (0, 1, 2)])
def test_30_any_orientation_gives_the_same_pile(flips):
    m = np.eye(4)
    for a in flips: m[a, a], m[a, 3] = -1, BLOCK.shape[a] - 1
    turned = Volume(np.flip(BLOCK.data, flips), BLOCK.affine @ m)
    swapped = Volume(turned.data.transpose(2, 0, 1), turned.affine[:, [2, 0, 1, 3]])
    for v in (turned, swapped): np.testing.assert_array_equal(cut(v).x, cut(BLOCK).x); assert cut(v).spacing == (4., 3.)

def test_within_counts_millimetres_from_the_middle():
    assert [len(cut(BLOCK, within=w)) for w in (0, 2, 3.9, 4, 100)] == [1, 3, 3, 5, 9]
    np.testing.assert_array_equal(cut(BLOCK, within=2).x, cut(BLOCK).x[3:6])

def test_least_counts_mask_pixels():
    y = np.zeros(BLOCK.shape, int); y[2, :2, :2] = 3; y[5, 0, 0] = 1
    m = BLOCK.with_data(y, 'label')
    assert [len(cut(BLOCK, m, least=n)) for n in (0, 1, 4, 5)] == [9, 2, 1, 0]
    s = cut(BLOCK, m, least=4)
    assert set(np.unique(s.y[0])) == {0, 1} and s.y[0].sum() == 4 and s.y[0][-2:, -2:].all()     # head up, front left: low and back is the last corner
    np.testing.assert_array_equal(s.x[0], cut(BLOCK).x[2])

def test_truth_and_mask_stay_with_their_slice():
    t = BLOCK.with_data(BLOCK.data + 100)
    s = cut(BLOCK, BLOCK.with_data(BLOCK.data > 0, 'label'), t, hu=(-5000, 5000), within=6)
    for x, y, c in zip(s.x, s.y, s.truth): np.testing.assert_allclose(c, x + .02, atol=1e-5); np.testing.assert_array_equal(y, x > 0)

def test_resampling_gives_the_spacing_asked_for_and_whole_masks():
    s = cut(BLOCK, BLOCK.with_data(BLOCK.data > 0, 'label'), BLOCK, spacing=1.5)
    assert s.spacing == pytest.approx((1.5, 1.5)) and len(s) == 12 and set(np.unique(s.y)) == {0, 1}
    np.testing.assert_array_equal(s.x, s.truth)

def test_19_20_21_companions_on_another_grid_are_refused():
    y = np.ones(BLOCK.shape, int)
    moved, wide = A.copy(), A.copy(); moved[0, 3] = 37; wide[0, 0] = 2.5
    refuses('different grids', 'shapes (9, 6, 7) and (8, 6, 7)', '.like(', call=lambda: cut(BLOCK, Volume(y[:8], A, 'label')))
    refuses('different grids', '37.0 mm', call=lambda: cut(BLOCK, Volume(y, moved, 'label')))
    refuses('different grids', 'spacings', 'p07', call=lambda: cut(BLOCK, truth=Volume(y, wide)))

def test_22_float_noise_in_an_affine_is_accepted():
    near = BLOCK.affine + np.vstack([rng.normal(0, 1e-3, (3, 4)), np.zeros((1, 4))])
    s = cut(BLOCK, Volume(np.ones(BLOCK.shape, int), near, 'label'), spacing=1.7)
    assert len(s.y) == len(s.x) and s.y[0].shape == s.x[0].shape

def test_no_slice_kept_is_an_empty_pile(): assert len(cut(BLOCK, BLOCK.with_data(np.zeros(BLOCK.shape), 'label'), least=1)) == 0


# ---- patients

@pytest.mark.parametrize('n, shares, sizes', [(10, (.7, .3), [7, 3]), (10, (1, 1, 1, 1), [2, 3, 3, 2]), (3, (.5, .5), [2, 1]), (35, (.6, .2, .2), [21, 7, 7])])
def test_UNPAIRED_E2_parts_are_disjoint_and_complete(n, shares, sizes):
    ids = [f'p{k:02d}' for k in range(n)]
    parts = split_patients(ids[::-1]*3, shares, seed=4)
    assert sorted(sum(parts, [])) == ids and sorted(map(len, parts)) == sorted(sizes)
    assert parts == split_patients(set(ids), shares, seed=4) and parts != split_patients(ids, shares, seed=5)

def test_too_few_patients(): refuses('too few', 'found 1', '2 or more', call=lambda: split_patients(['a', 'a']))

def test_UNPAIRED_E2_39_a_shared_patient_is_named():
    refuse_shared(a=L, b=H, c=['z'], d=[])
    refuses("'a' and 'c'", 'found b', 'split_patients', call=lambda: refuse_shared(a=L, b=H, c=['z', 'b']))
    refuses("'b' and 'c'", 'found c, d', call=lambda: refuse_shared(a=[], b=H, c='dc'))
    refuses("'l' and 'h'", 'found p00', call=lambda: refuse_shared(l=['P00', 'P01'], h=['p00', 'p02']))   # on many disks one file
    refuses("'l' and 'h'", 'found 7', call=lambda: refuse_shared(l=[7], h=['7', '8']))


# ---- crops

def test_UNPAIRED_E3_every_window_over_the_mask_can_come_and_no_other():
    x, y = np.arange(100).reshape(10, 10), np.zeros((10, 10), int); y[0, 4], y[8, 8] = 1, 1
    seen = {int(random_crop(x, y, 3, np.random.default_rng(k))[0][0, 0]) for k in range(1500)}
    assert seen == {r*10 + c for r in range(8) for c in range(8) if y[r:r+3, c:c+3].any()}

def test_image_and_mask_are_cut_alike():
    for k in range(50):
        x, y = random_crop(L.x[0], L.y[0], 7, np.random.default_rng(k))
        assert x.shape == y.shape == (7, 7) and ((x > .5) == y).all() and y.any()

@pytest.mark.parametrize('side, size', [(24, (20, 16)), (18, (20, 16)), (20, (20, 16)), (5, (5, 3))])
def test_33_small_slices_are_padded(side, size):
    x = rng.uniform(1, 2, size); y = np.ones(size, int)
    a, m = random_crop(x, y, side, np.random.default_rng(0))
    assert a.shape == m.shape == (side, side) and a.min() >= 1                 # the edge goes on, no new value comes in
    assert m.sum() == min(side, size[0])*min(side, size[1])
    assert random_crop(x, None, side, np.random.default_rng(0))[1] is None

def test_an_empty_mask_crops_anywhere():
    x = np.arange(36).reshape(6, 6)
    assert len({int(random_crop(x, 0*x, 3, np.random.default_rng(k))[0][0, 0]) for k in range(300)}) == 16


# ---- the stream

def noise(*s, seed=0): return torch.rand(*s, generator=torch.Generator().manual_seed(seed))*2 - 1

@pytest.mark.parametrize('sides, size, overlap', [((40, 33, 50), (16, 16, 16), .5), ((40, 33, 50), (16, 40, 20), .25), ((17, 16, 16), (16, 16, 16), .75), ((40, 33, 50), (16, 16, 16), 0.), ((40, 33), (16, 20), .5), ((20, 20, 20), None, .5)])
def test_UNPAIRED_E4_blocks_give_the_identity_back(sides, size, overlap):
    x = noise(2, 1, *sides)
    assert_close(blend_blocks(x, lambda v: v, size, overlap), x, atol=2e-6, rtol=0)
    assert_close(blend_blocks(x, lambda v: torch.cat([v, 2*v], 1), size, overlap), torch.cat([x, 2*x], 1), atol=4e-6, rtol=0)

def test_UNPAIRED_E4_blocks_are_of_one_size_cover_all_and_overlap():
    seen, hits = [], torch.zeros(1, 1, 40, 16, 70)
    def fn(v): seen.append(tuple(v.shape[2:])); v += 1; return v
    blend_blocks(hits, fn, (16, 16, 32), .5)
    assert set(seen) == {(16, 16, 32)} and len(seen) == 4*1*4 and hits.min() >= 1

def test_UNPAIRED_E4_blending_is_the_hann_mean_of_its_blocks():
    x = torch.zeros(1, 1, 48); calls = itertools.count(1.)
    y = blend_blocks(x, lambda v: v + next(calls), (32,), .5)[0, 0]
    w = np.sin(np.pi*(np.arange(32) + .5)/32)**2
    assert_close(y[:16], torch.ones(16)); assert_close(y[32:], 2*torch.ones(16))
    assert_close(y[16:32].double(), torch.from_numpy((w[16:]*1 + w[:16]*2)/(w[16:] + w[:16])), atol=1e-5, rtol=0)
    assert (y.diff() > -1e-6).all() and y.diff().max() < .1                                # 1 becomes 2 without a step

@pytest.mark.parametrize('bad', [-.1, 1., 1.5])
def test_UNPAIRED_E4_blocks_refuse(bad):
    with pytest.raises(XModSegError, match='overlap'): blend_blocks(noise(1, 1, 32, 32, 32), lambda v: v, (16, 16, 16), bad)

def test_UNPAIRED_E5_a_batch_depends_on_the_step_alone():
    data, again = DATA(), DATA()
    first = [data[t] for t in range(6)]
    assert all(equal(first[t], again[t]) for t in (5, 2, 0)) and not equal(first[0], first[1])
    torch.manual_seed(3); np.random.seed(3)
    assert equal(first[4], DATA()[4]) and not equal(first[4], DATA(seed=1)[4])

@pytest.mark.parametrize('workers', [0, 2])
def test_79_same_stream_for_any_number_of_workers(workers):
    loader = DataLoader(DATA(), sampler=range(6), batch_size=None, num_workers=workers)
    got = list(loader)
    assert len(got) == 6 and all(equal(DATA()[t], b) for t, b in enumerate(got))

def test_batches_have_the_promised_form():
    b = DATA()[0]
    assert sorted(b) == ['name', 'x_h', 'x_l', 'y_h'] and len(b.name) == 2
    for k in ('x_l', 'x_h', 'y_h'): assert b[k].shape == (2, 1, 8, 8) and b[k].dtype == torch.float32
    assert set(b.y_h.unique().tolist()) <= {0., 1.} and ((b.x_h > .5).float() == b.y_h).all()
    assert all(n.split(' / ')[0][0] in 'ab' and n.split(' / ')[1][0] in 'cd' for n in b.name)

def test_whole_slices_without_side(): assert Unpaired(L, H)[0].x_h.shape == (1, 1, 20, 16)

def test_96_labels_and_truth_of_l_are_never_used():
    for l in (Slices(L.x, L.patient, L.y[::-1], L.x[::-1]), L.unlabelled()):
        d = Unpaired(l, H, batch=2, side=8)
        assert d.fingerprint == DATA().fingerprint and all(equal(DATA()[t], d[t]) for t in range(4))
        assert d.l.y is None and d.l.truth is None

def test_truth_of_h_never_comes_out():
    d = Unpaired(L, Slices(H.x, H.patient, H.y, [np.full((20, 16), 7.)]*6), batch=2, side=8)
    assert all(equal(DATA()[t], d[t]) for t in range(4)) and d.fingerprint == DATA().fingerprint

def test_flips_turn_image_and_mask_together():
    x = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    one = Slices([x], ['r'], [(x > 5).astype(np.uint8)])
    drawn = [Unpaired(L, one)[t] for t in range(100)]
    assert all(((b.x_h > 5).float() == b.y_h).all() for b in drawn)
    assert .3 < np.mean([b.x_h[0, 0, 0, 0].item() for b in drawn])/7 < .7
    assert all(b.x_h[0, 0, 0, 0] == 0 and (b.x_h[0, 0, :, 0] == 0).all() for b in [Unpaired(L, one, flip=False)[t] for t in range(20)])

def test_41_piles_of_unequal_length():
    d = Unpaired(pile('a', seed=5), H)
    assert {n.split(' / ')[1] for t in range(100) for n in d[t].name} == {f'{p}[{i}]' for i, p in enumerate(H.patient)}

def test_95_flat_crops_are_drawn_again_and_given_up_with_a_message():
    flat = Slices([np.zeros((20, 16), np.float32)]*9 + [L.x[0]], ['z']*9 + ['a'])
    assert {n.split(' / ')[0] for t in range(30) for n in Unpaired(flat, H, side=8)[t].name} == {'a[9]'}
    refuses('50 crops in a row are flat', 'z:', '0.02', 'window', call=lambda: Unpaired(flat.of('z'), H, side=8)[0])
    assert Unpaired(flat.of('z'), H, side=8, min_std=0.)[0].x_l.std() == 0

@pytest.mark.parametrize('words, l, h', [(('both', 'found a'), L, pile('ac')), (('both',), L, L), (('no masks', 'pass labelled'), L, H.unlabelled()), (("pile 'l' is empty",), L.of('z'), H), (("pile 'h' is empty",), L, H.of('z'))])
def test_39_40_unfit_piles_are_refused(words, l, h): refuses(*words, call=lambda: Unpaired(l, h))

def test_fingerprint_names_the_stream():
    prints = [DATA(**k).fingerprint for k in ({}, dict(seed=1), dict(side=9), dict(batch=3), dict(flip=False), dict(min_std=.1))] + [Unpaired(L, pile('ccdd'), batch=2, side=8).fingerprint]
    assert len(set(prints)) == 7 and DATA().fingerprint == f'{L.unlabelled().fingerprint()}-{H.fingerprint()}-2-8-True-0'

def test_window_is_the_paper_s_by_default(): np.testing.assert_allclose(cut(BLOCK).x[0], window(BLOCK.data, -1000, 2000)[0].T[::-1, ::-1], atol=1e-6)


def test_padded_gives_one_size_that_divides_and_adds_nothing_to_masks():
    a = Slices([np.full((5, 9), .25, np.float32)], ['a'], [np.ones((5, 9), np.uint8)], [np.full((5, 9), .5, np.float32)])
    b = Slices([np.arange(6, dtype=np.float32).reshape(2, 3)], ['b'], [np.zeros((2, 3), np.uint8)], [np.zeros((2, 3), np.float32)])
    p = padded(join([a, b]), 4)
    assert {x.shape for v in (p.x, p.y, p.truth) for x in v} == {(8, 12)} and p.patient == ['a', 'b']
    assert (p.x[0] == .25).all() and (p.truth[0] == .5).all() and p.y[0].sum() == 45 and p.y[0][:5, :9].all()
    assert (p.x[1][:2, :3] == [[0, 1, 2], [3, 4, 5]]).all() and (p.x[1][1:, 2:] == 5).all() and p.y[1].sum() == 0
    assert padded(Slices([], [], [], [])).x == [] and padded(a.unlabelled()).y is None


# ---- several organs

def organs(names='ab', size=(20, 16), C=3):
    "Organ k of a slice is where its pixels lie between k/C and (k+1)/C of the range: they exclude each other, and each is seen in the image."
    p = pile(names, size, y=False)
    band = lambda x, k: ((x > -1 + 2*k/C) & (x <= -1 + 2*(k + 1)/C)).astype(np.uint8)
    return Slices(p.x, p.patient, [np.stack([band(x, k) for k in range(C)]) for x in p.x])

def bands(x, C=3): return torch.cat([((x > -1 + 2*k/C) & (x <= -1 + 2*(k + 1)/C)).float() for k in range(C)], 1)

@pytest.mark.parametrize('side', [None, 8, 24])
def test_every_organ_is_cropped_padded_and_mirrored_with_its_image(side):
    d = Unpaired(L, organs('ef'), batch=2, side=side)
    for t in range(20):
        b = d[t]
        assert b.y_h.shape == (2, 3, *b.x_h.shape[2:]) and b.y_h.dtype == torch.float32
        if side != 24: assert torch.equal(b.y_h, bands(b.x_h))
    assert (b.y_h.sum(1) <= 1).all()
    if side == 24: assert all(float(d[t].y_h[k].sum()) == 20*16 for t in range(5) for k in (0, 1))   # padding adds image, no organ

def test_an_organ_pixel_of_any_plane_may_hold_the_crop():
    x, y = np.zeros((40, 40)), np.zeros((2, 40, 40), int); y[0, 2, 2] = y[1, 37, 30] = 1
    got = [random_crop(x, y, 5, np.random.default_rng(k))[1] for k in range(60)]
    assert all(m.shape == (2, 5, 5) and m.sum() == 1 for m in got) and {int(m[1].sum()) for m in got} == {0, 1}

def test_padded_grows_every_plane_and_adds_nothing():
    p = padded(organs(size=(18, 13)), 8)
    assert p.y[0].shape == (3, 24, 16) and p.y[0].sum() == 18*13 and (p.y[0][:, :18, :13] == organs(size=(18, 13)).y[0]).all()

def test_piles_with_other_organs_or_axes_are_refused():
    refuses('different numbers of organs', call=lambda: join([organs('a'), organs('b', C=2)]))
    refuses('different numbers of organs', call=lambda: join([organs('a'), pile('b')]))
    refuses('y lies on another grid', call=lambda: Slices([np.zeros((4, 4))], ['a'], [np.zeros((4, 4, 3))]))
    refuses('y lies on another grid', call=lambda: Slices([np.zeros((4, 4))], ['a'], [np.zeros((1, 1, 4, 4))]))
    refuses('truth lies on another grid', call=lambda: Slices([np.zeros((4, 4))], ['a'], truth=[np.zeros((2, 4, 4))]))

def test_fingerprint_of_one_organ_is_what_it_was():   # checkpoints of earlier runs go on
    p = Slices([np.full((2, 3), .5, np.float32)], ['a'], [np.array([[0, 1, 0], [1, 0, 0]], np.uint8)], spacing=(2., 3.))
    assert p.fingerprint() == 'efda6481e168f1d5' != Slices(p.x, p.patient, [p.y[0][::-1]], spacing=(2., 3.)).fingerprint()

# ---- UNPAIRED.E6

NOTHING = dict(turn=0., zoom=0., shift=0., bend=0., gain=0., noise=0.)
def one(x, y=None, n=4): return Unpaired(Slices([np.eye(8, dtype=np.float32)], ['l']), Slices([x.astype(np.float32)], ['h'], [(x > 0).astype(np.uint8) if y is None else y]), n, flip=False, min_std=0.)
def varied(x, **what): return Varied(one(x), **{**NOTHING, **what})
ROW = np.tile(np.linspace(-1, 1, 33), (33, 1))

def test_UNPAIRED_E6_nothing_drawn_nothing_moves_and_the_other_domain_never_does():
    feed = one(ROW)
    for k in ('x_l', 'x_h', 'y_h'): assert_close(varied(ROW)[5][k], feed[5][k], atol=1e-5, rtol=0)
    assert torch.equal(Varied(feed)[5].x_l, feed[5].x_l) and Varied(feed)[5].name == feed[5].name

def test_UNPAIRED_E6_contrast_is_bent_by_the_exponent_and_scaled_by_the_factor():
    for b in (varied(ROW, bend=.5)[t] for t in range(8)):
        e = torch.log2(2/(b.x_h[:, 0, 0, 16] + 1))                       # 0 becomes 2 (1/2)^e - 1
        assert (e > np.exp(-.5) - 1e-4).all() and (e < np.exp(.5) + 1e-4).all()
        for i in (4, 11, 24): assert_close(b.x_h[:, 0, 7, i], 2*((ROW[0, i] + 1)/2)**e - 1, atol=1e-4, rtol=0)
    e = torch.stack([torch.log2(2/(varied(ROW, bend=.5)[t].x_h[:, 0, 0, 16] + 1)).log() for t in range(60)])
    assert abs(e.mean()) < .06 and .26 < e.std() < .32                # uniform in [-1/2, 1/2]: 0.289
    g = varied(.5*ROW, gain=.2)[3].x_h/varied(.5*ROW)[3].x_h.clamp(min=1e-3)
    assert_close(g[:, 0, :, 20:], g[:, 0, :1, 20:21].expand(-1, 33, 13), atol=1e-4, rtol=0); assert (g[:, 0, 0, 20] - 1).abs().max() <= .2 and g[:, 0, 0, 20].std() > .02

@pytest.mark.parametrize('what', (dict(turn=.6), dict(zoom=.3), dict(shift=.3), dict(turn=.4, zoom=.2, shift=.2)))
def test_UNPAIRED_E6_the_mask_moves_with_its_image(what):
    i, j = np.indices((65, 65))
    hill = 1.6*np.exp(-((i - 22)**2/200 + (j - 40)**2/60)) - .8       # no symmetry about the middle
    for b in (varied(hill, **what)[t] for t in range(5)):
        p, y = b.x_h > 0, b.y_h > 0
        assert 2*(p & y).sum()/(p.sum() + y.sum()) > .95
    assert torch.stack([varied(hill, **what)[t].y_h.float().mean((1, 2, 3)) if 'zoom' in what else varied(hill, **what)[t].y_h.flatten(1).float().argmax(1).float() for t in range(5)]).std() > 0

def test_UNPAIRED_E6_a_turn_is_a_turn_and_a_shift_a_shift():
    i, j = np.indices((65, 65)) - 32
    ring = ((np.hypot(i, j) < 20)*2. - 1).astype(np.float32)          # turned about its middle it stays
    assert (varied(ring, turn=.25)[0].y_h != torch.from_numpy(ring > 0)).float().mean() < .01
    sizes = torch.cat([varied(ring, zoom=.2)[t].y_h.mean((1, 2, 3)) for t in range(20)])/float((ring > 0).mean())
    assert sizes.min() > .68 and sizes.max() < 1.6 and (sizes < .9).any() and (sizes > 1.1).any()      # 1/1.2^2 to 1/0.8^2
    moved = [np.argwhere(y.numpy() > 0).mean(0) - 32 for t in range(20) for y in varied(ring, shift=.1)[t].y_h[:, 0]]
    assert np.abs(moved).max() < 3.8 and np.abs(moved).max() > 2.5 and (np.abs(np.mean(moved, 0)) < 1).all()   # 0.1 of half of 65 px

def test_UNPAIRED_E6_depends_on_step_and_seed_alone():
    a, b = Varied(one(ROW)), Varied(one(ROW))
    assert torch.equal(a[9].x_h, b[9].x_h) and not torch.equal(a[9].x_h, a[8].x_h) and not torch.equal(a[9].x_h, Varied(one(ROW), seed=1)[9].x_h)
    assert not torch.equal(a[9].x_h[0], a[9].x_h[1])                  # each picture its own
    assert len({v.fingerprint for v in (a, Varied(one(ROW), seed=1), Varied(one(ROW), turn=.1), Varied(one(ROW), through=torch.neg), one(ROW))}) == 5
    assert_close(Varied(one(ROW), through=torch.neg, **NOTHING)[2].x_h, -one(ROW)[2].x_h, atol=1e-5, rtol=0)
    assert_close((varied(.5*ROW, noise=.05)[1].x_h - varied(.5*ROW)[1].x_h).std(), torch.tensor(.05), atol=3e-3, rtol=0)

def test_UNPAIRED_E6_both_halves_move_each_on_its_own_and_the_greys_of_the_other_stay():
    i, j = np.indices((65, 65)) - 32
    ring = (np.hypot(i, j) < 20)*1.6 - .8
    pile = lambda n, **y: Slices([ring.astype(np.float32)], [n], **y)
    feed = Unpaired(pile('l'), pile('h', y=[(ring > 0).astype(np.uint8)]), 4, flip=False, min_std=0.)
    alone, both = (Varied(feed, 3, **{**NOTHING, 'shift': .1, 'zoom': .1, 'bend': .5, 'noise': .05}, both=b) for b in (False, True))
    place = lambda x: torch.stack([p.nonzero().double().mean(0) for p in x[:, 0] > 0])
    moves = []
    for t in range(12):
        a, b = alone[t], both[t]
        assert torch.equal(a.x_h, b.x_h) and torch.equal(a.y_h, b.y_h) and torch.equal(a.x_l, feed[t].x_l)
        assert abs(b.x_l.min() + .8) < 1e-4 and abs(b.x_l.max() - .8) < 1e-4       # no bend, no noise
        moves.append(torch.cat([place(b.x_l) - 32, place(b.y_h) - 32], 1))
    moves = torch.cat(moves)
    assert 2.2 < moves[:, :2].abs().max() < 3.8 and (moves[:, :2].mean(0).abs() < 1).all()     # 0.1 of half of 65 px
    assert (moves[:, :2] - moves[:, 2:]).abs().amax(1).min() > .05 and abs(np.corrcoef(moves[:, 0], moves[:, 2])[0, 1]) < .4   # not the move of the labelled half
    assert both.fingerprint != alone.fingerprint

# ---- UNPAIRED.E7

def test_UNPAIRED_E7_a_curve_by_hand():
    x = torch.tensor([-1., -.5, 0., .5, 1., 3.]).view(1, 1, 6).expand(2, 1, 6)       # 3 lies beyond the last knot
    got = curved(x, torch.tensor([[1., -1., 0.], [-1., 0., 1.]]))
    assert_close(got[0, 0], torch.tensor([1., 0., -1., -.5, 0., 0.])); assert_close(got[1, 0], x[1, 0].clamp(max=1))

def test_UNPAIRED_E7_equals_interpolation_on_any_grid():
    x, v = torch.rand(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))*2 - 1, random_curves(3, 7, generator=torch.Generator().manual_seed(1))
    for i in range(3): assert_close(curved(x, v)[i].double(), torch.from_numpy(np.interp(x[i].numpy(), np.linspace(-1, 1, 7), v[i].numpy())), atol=1e-5, rtol=0)

def test_UNPAIRED_E7_curves_fill_the_range_and_the_rest_is_straight():
    v, straight = random_curves(3000, 4, .8, torch.Generator().manual_seed(2)), torch.linspace(-1, 1, 4)
    assert_close(v.amin(1), -torch.ones(3000)); assert_close(v.amax(1), torch.ones(3000))
    drawn = (v != straight).any(1)
    assert abs(drawn.float().mean() - .8) < .025 and abs((v[drawn][:, 0] < v[drawn][:, -1]).float().mean() - .5) < .04   # as many fall as rise
    assert torch.equal(random_curves(5, 4, 0.), straight.expand(5, 4))

def test_UNPAIRED_E7_in_the_stream():
    feed = one(ROW)
    a, b = Varied(feed, curve=1., knots=3, **NOTHING), varied(ROW)
    for t in range(4):
        assert torch.equal(a[t].y_h, b[t].y_h) and torch.equal(a[t].x_l, feed[t].x_l) and torch.equal(a[t].x_h, a[t].x_h)
        assert_close(a[t].x_h[:, :, :1].expand(-1, -1, 33, -1), a[t].x_h, atol=1e-5, rtol=0)          # equal greys stay equal
        assert_close(a[t].x_h.amax((1, 2, 3)), torch.ones(4), atol=1e-5, rtol=0)                     # the knots lie on columns of ROW
    changed = sum(int((Varied(feed, curve=.25, **NOTHING)[t].x_h - b[t].x_h).abs().amax((1, 2, 3)).gt(1e-3).sum()) for t in range(100))
    assert 75 < changed < 125                                        # a quarter of 400
    assert len({v.fingerprint for v in (Varied(feed), Varied(feed, curve=.5), Varied(feed, curve=.5, knots=5))}) == 3 and Varied(feed).fingerprint == Varied(feed, knots=5).fingerprint

@pytest.mark.parametrize('what', (dict(curve=1.5), dict(curve=-.1), dict(knots=1)))
def test_UNPAIRED_E7_refuses(what):
    refuses('no such curve', call=lambda: Varied(one(ROW), **what))
    refuses('curves do not fit', call=lambda: curved(torch.zeros(2, 1, 4, 4), torch.zeros(1, 4)))
    refuses('curves do not fit', call=lambda: curved(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1)))

@pytest.mark.parametrize('n,shares', [(2, (.9, .1)), (3, (.9, .1)), (4, (.8, .1, .1)), (3, (.1, .1, .8)), (10, (.7, .3)), (8, (.7, .1, .2)), (10, (.8, .05, .15)), (10, (.5, .02, .48)), (5, (.96, .01, .01, .01, .01))])
def test_UNPAIRED_E2_no_part_is_empty(n, shares):
    parts = split_patients([f'p{k}' for k in range(n)], shares)
    assert all(parts) and len(sum(parts, [])) == n == len(set(sum(parts, [])))

def test_UNPAIRED_E6_a_picture_that_is_not_square_is_turned_and_not_sheared():
    "A vertical bar: the angle that is drawn is the angle that is seen, however wide the picture."
    from xmodseg.unpaired import _moved
    for h, w in ((64, 64), (48, 96), (96, 48)):
        x = torch.zeros(1, 1, h, w); x[..., w//2 - 2:w//2 + 2] = 1.
        for seed in range(3):
            drawn = float(.5*(2*torch.rand(1, generator=torch.Generator().manual_seed(seed)) - 1))
            y = _moved(1, .5, 0., 0., torch.Generator().manual_seed(seed))(x)[0, 0]
            i, j = torch.nonzero(y[8:-8] > .5, as_tuple=True)
            slope = np.polyfit(i.numpy(), j.numpy(), 1)[0]
            assert abs(np.arctan(slope)) == pytest.approx(abs(drawn), abs=.05), (h, w, seed)

def test_a_mask_is_resampled_as_a_mask_whatever_it_calls_itself():
    m = np.zeros((12, 12, 12), np.float32); m[4:8, 4:8, 4:8] = 1
    v = Volume(np.random.default_rng(0).normal(0, 100, m.shape).astype(np.float32), np.diag([2., 2, 2, 1]))
    counts = {kind: sum(int(y.sum()) for y in cut(v, Volume(m, v.affine, kind), spacing=1.).y) for kind in ('label', 'image')}
    assert counts == {'label': 512, 'image': 512}

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_UNPAIRED_E7_curves_keep_the_kind_of_numbers(dtype):
    x = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    greys = torch.tensor([[-1., .5, 0., 1.]])
    y = curved(x.to(dtype), greys)
    assert y.dtype == dtype and (y.float() - curved(x, greys)).abs().max() < .03

def test_NaN_reaches_the_guard_of_the_loop():
    x = np.random.default_rng(0).uniform(-1, 1, (8, 8)).astype(np.float32); bad = x.copy(); bad[2, 3] = np.nan
    l, h = Slices([bad], ['a'], spacing=(1., 1.)), Slices([x], ['b'], [(x > 0).astype(np.uint8)], spacing=(1., 1.))
    feed = Unpaired(l, h, 1, None, flip=False)
    assert feed[0].x_l.isnan().sum() == 1 and feed[0].name == ['a[0] / b[0]']
    one_nan = curved(torch.tensor([[[[.5, torch.nan]]]]), torch.tensor([[-1., 1.]]))
    assert one_nan[0, 0, 0, 0] == .5 and one_nan[0, 0, 0, 1].isnan()

def test_whole_slices_of_several_sizes_make_no_batch():
    a = lambda n: np.zeros((n, 8), np.float32)
    l, h = Slices([a(8), a(16)], ['a', 'a'], spacing=(1., 1.)), Slices([a(8)], ['b'], [np.zeros((8, 8), np.uint8)], spacing=(1., 1.))
    refuses("several sizes in pile 'l'", 'padded', call=lambda: Unpaired(l, h, 2))
    Unpaired(l, h, 1); Unpaired(l, h, 2, 8)

def test_a_translator_may_answer_in_another_precision():
    feed = one(ROW)
    assert Varied(feed, through=lambda x: x.double())[0].x_h.dtype == torch.float32
