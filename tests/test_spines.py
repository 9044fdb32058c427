"Volumes of crooked spines: the view, the cache, three groups of people, copies, blocks, and real MR. Numbers in names are rows of the fault table."
import os, warnings, zlib
from pathlib import Path
import numpy as np
import pytest
import torch
from xmodseg import spines
from xmodseg.column import cobb_angle, intensity_range, landmarks, stretch, up_axis
from xmodseg.core import XModSegError
from xmodseg.files import write_volume
from xmodseg.implicit import draw_params, spine
from xmodseg.phantom import patient, render_ct, render_mr, vertebra_mask
from xmodseg.spines import WORLDS3D, UnpairedVolumes, Volumes3d, around_column, augmented, ct_columns, mr_cohort, mr_pile, mr_scans, mr_slices, spine_cases, spine_cohort, spine_scan
from xmodseg.unpaired import Slices, refuse_shared
from xmodseg.volume import Volume
from xmodseg.implicit import LEVELS

COARSE = dict(shape=(22, 20, 64), spacing=(8., 8., 8.))

def near(a, b, tol): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=0, atol=tol)
def refuses(words, call):
    with pytest.raises(XModSegError, match=words) as e: call()
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

@pytest.fixture(scope='module')
def people(cache): return spine_cases([(1, 10.), (2, 35.), (3, 60.)], world=COARSE, cache=cache, workers=1)

@pytest.fixture(scope='module')
def pile(people): return Volumes3d([stretch(c.mr, 'mr').data for c in people], [c.patient for c in people], spacing=people[0].mr.spacing)

def noise(*sizes, who='abcdefgh', seed=0):
    rng = np.random.default_rng(seed)
    return Volumes3d([rng.uniform(-1, 1, s).astype(np.float32) for s in sizes], list(who[:len(sizes)]))

# ---- the view

@pytest.mark.parametrize('size', WORLDS3D)
def test_SPINES_E1_the_column_of_every_patient_lies_in_the_view(size):
    "By the frames of all patients of three folds, and by the landmarks of the two that reach furthest."
    w, far = WORLDS3D[size], []
    half = np.array(w['shape'])*w['spacing']/2
    for fold in range(3):
        for at, n in ((5000, w['train']), (6000, w['train']), (7000, w['test'])):
            for i in range(n):
                s, c = 10_000*fold + at + i, 70*i/max(n - 1, 1)
                v = spine(draw_params(s, cobb=c))
                out = np.abs(np.stack([u.centre_mm for u in v]) - spines._middle(v)).max(0)/half
                far.append((out.max(), s, c))
    for _, s, c in sorted(far)[-2:]:
        v = spine(draw_params(s, cobb=c))
        q = np.concatenate([landmarks(u) for u in v[:2] + v[6:10:3] + v[15:]])
        assert (np.abs(q - spines._middle(v)) < half).all(), (s, c)

def test_SPINES_E1_two_scans_of_one_person_on_one_grid():
    s = spine_scan(4, 50., 'water', COARSE)
    assert s.mr.shape == s.ct.shape == COARSE['shape'] and np.array_equal(s.mr.affine, s.ct.affine) and s.ct.axes == 'RAS'
    near(s.ct.affine[:3, 3] + (np.array(s.ct.shape) - 1)*4, spines._middle(s.vertebrae), 1e-3)
    p = patient(4, COARSE['shape'], COARSE['spacing'], spines._middle(s.vertebrae), cobb=50.)
    assert np.array_equal(render_ct(p, 4).data, s.ct.data) and np.array_equal(render_mr(p, 't2', 4).data, spine_scan(4, 50., 't2', COARSE).mr.data)
    near(cobb_angle({v.name: v.axes[:, 2] for v in s.vertebrae}).degrees, 50, 1e-9)

def test_full_is_the_papers_size_and_blocks_suit_a_net_that_halves_four_times():
    assert sorted(WORLDS3D['full']['shape']) == [48, 128, 256] and WORLDS3D['full']['copies'] == (15, 15, 15)
    for w in WORLDS3D.values(): assert all(n % 16 == 0 for n in w['block'] or w['shape']) and all(b <= n for b, n in zip(w['block'] or (), w['shape']))

# ---- kept on disk

def test_a_case_holds_both_scans_and_every_level(people):
    for c, (s, cobb) in zip(people, ((1, 10.), (2, 35.), (3, 60.))):
        assert c.patient == f'spine{s:05d}' and c.cobb == cobb and len(c.landmarks) == len(c.vertebrae) == 17 and c.labels.kind == 'label'
        near(cobb_angle({n: up_axis(q) for n, q in c.landmarks.items()}).degrees, cobb, 1e-5)
        i = np.rint((np.concatenate([v.centre_mm[None] for v in c.vertebrae]) - c.labels.affine[:3, 3])/8).astype(int)
        assert np.mean([c.labels.data[tuple(k)] == v.label for k, v in zip(i, c.vertebrae)]) > .9     # frames, labels and affine agree

def test_a_level_that_leaves_the_view_has_no_landmarks(tmp_path):
    c = spine_cases([(1, 10.)], world=dict(shape=(22, 20, 40), spacing=(8., 8., 8.)), cache=tmp_path)[0]
    assert 5 < len(c.landmarks) < 17 and 'T9' in c.landmarks and 'L5' not in c.landmarks and [v.name for v in c.vertebrae] == list(c.landmarks)

def test_75_the_second_call_reads_and_half_a_file_is_made_again(people, cache):
    file = spines._kept_as(cache, 'npz', 2, 35., 'water', COARSE)
    stamp = file.stat().st_mtime_ns
    assert np.array_equal(spine_cases([(2, 35.)], world=COARSE, cache=cache)[0].mr.data, people[1].mr.data) and file.stat().st_mtime_ns == stamp
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.warns(UserWarning, match='do not load'): again = spine_cases([(2, 35.)], world=COARSE, cache=cache)[0]
    assert np.array_equal(again.ct.data, people[1].ct.data)

def test_76_kind_grid_angle_and_code_are_in_the_name(cache, monkeypatch):
    name = lambda *a: spines._kept_as(cache, 'npz', *a)
    one = name(2, 35., 'water', COARSE)
    assert one != name(2, 36., 'water', COARSE) and one != name(2, 35., 't1', COARSE) and one != name(2, 35., 'water', dict(COARSE, spacing=(8, 8, 7)))
    for m in spines._MAKERS:
        read = Path.read_bytes
        monkeypatch.setattr(Path, 'read_bytes', lambda p, m=m: read(p) + (b'#' if p.stem == m else b''))
        assert name(2, 35., 'water', COARSE) != one
        monkeypatch.undo()

def test_two_workers_make_the_same(people, tmp_path):
    two = spine_cases([(1, 10.), (3, 60.)], world=COARSE, cache=tmp_path, workers=2)
    for a, b in zip(two, people[::2]): assert np.array_equal(a.mr.data, b.mr.data) and np.array_equal(a.labels.data, b.labels.data)

# ---- piles

def test_SPINES_E2_three_groups_of_people_and_the_truth_is_the_other_scan(cache, monkeypatch):
    monkeypatch.setitem(WORLDS3D, 'tiny', dict(COARSE, block=None, train=2, test=3, copies=(1, 1, 1)))
    c = spine_cohort('tiny', 1, cache=cache, workers=1)
    assert c.train_mr.patient == ['spine15000', 'spine15001'] and c.train_ct.patient == ['spine16000', 'spine16001'] and [t.patient for t in c.test] == ['spine17000', 'spine17001', 'spine17002']
    assert [t.cobb for t in c.test] == [0, 35, 70]
    both = spine_cases([(15000, 17.5), (16001, 52.5)], world=COARSE, cache=cache)
    assert np.array_equal(c.train_mr.x[0], stretch(both[0].mr, 'mr').data) and np.array_equal(c.train_mr.truth[0], stretch(both[0].ct, 'ct').data)
    assert np.array_equal(c.train_ct.x[1], stretch(both[1].ct, 'ct').data) and np.array_equal(c.train_ct.truth[1], stretch(both[1].mr, 'mr').data)
    high = spine_cohort('tiny', 1, floor=-150., cache=cache, workers=1)
    assert np.array_equal(high.train_ct.x[1], stretch(both[1].ct, 'ct', -150.).data) and np.array_equal(high.train_mr.truth[0], stretch(both[0].ct, 'ct', -150.).data) and np.array_equal(high.train_mr.x[0], c.train_mr.x[0])
    assert set(np.unique(c.train_mr.y[0])) <= set(range(18)) and np.array_equal(c.train_mr.y[0] > 0, (both[0].labels.data >= 1) & (both[0].labels.data <= 17))
    refuses('no such fold', lambda: spine_cohort('tiny', -1)); refuses('no such size', lambda: spine_cohort('huge'))

def test_a_pile_knows_its_patients_and_refuses_what_does_not_fit():
    p = Volumes3d([np.zeros((2, 3, 4))]*3, ['a', 'b', 'a'], [np.ones((2, 3, 4))]*3, [np.zeros((2, 3, 4))]*3, (2., 1., 1.))
    assert isinstance(p, Slices) and len(p.of(['a'])) == 2 and p.of(['b']).y is not None and p.of('a').spacing == (2., 1., 1.) and p.unlabelled().truth is None and p.unlabelled().y is None
    assert p.fingerprint() != p.unlabelled().fingerprint() and p.fingerprint() == Volumes3d(p.x, p.patient, p.y, spacing=p.spacing).fingerprint()
    for bad in (dict(y=[np.zeros((2, 3, 5))]*3), dict(truth=[np.zeros((2, 3))]*3)): refuses('on one grid', lambda: Volumes3d(p.x, p.patient, **bad))
    refuses('on one grid', lambda: Volumes3d([np.zeros((3, 4))], ['a'])); refuses('does not fit', lambda: Volumes3d(p.x, ['a'])); refuses('one answer per slice', lambda: p.where([True]))

# ---- copies

@pytest.fixture(scope='module')
def more(pile, cache):
    return augmented(pile, 'mr', (2, 1, 3), cache=cache, workers=1)

def test_SPINES_E3_each_volume_and_its_copies_of_every_kind(pile, more):
    assert len(more) == 3*7 and more.patient == [p for p in pile.patient for _ in range(7)] and more.y is None and more.truth is None and more.spacing == pile.spacing
    for k in range(3):
        x = [v.astype(np.float32) for v in more.x[7*k:7*k + 7]]
        near(x[0], pile.x[k], 1e-3)
        r = [np.corrcoef(x[0].ravel(), v.ravel())[0, 1] for v in x]
        assert max(r[1:3]) < .999 and .999 < r[3] < 1 and max(r[4:]) < .999 and min(r) > .2          # turned, noisy, bent
        near((x[3] - x[0])[np.abs(x[0]) < .8].std(), .01, .004)
        for v in x: assert v.min() == -1 and v.max() == 1 and v.dtype == np.float32
    assert 24*(1 + sum(WORLDS3D['full']['copies'])) == 1104 and all(v.dtype == np.float16 and isinstance(v, np.memmap) for v in more.x)

def test_SPINES_E3_chance_belongs_to_the_patient(pile, more, tmp_path):
    alone = augmented(pile.of([pile.patient[2]]), 'mr', (2, 1, 3), cache=tmp_path, workers=1)
    for a, b in zip(alone.x, more.x[14:]): assert np.array_equal(a, b)
    other = augmented(pile.of([pile.patient[2]]), 'mr', (2, 1, 3), seed=1, cache=tmp_path, workers=1)
    assert not np.array_equal(other.x[1], alone.x[1]) and np.array_equal(other.x[0], alone.x[0])
    assert not np.array_equal(alone.x[1], alone.x[2])

def test_SPINES_E3_75_copies_are_read_again_and_made_again_when_damaged(pile, more, cache):
    files = {p: p.stat().st_mtime_ns for p in cache.glob('*.npy')}
    again = augmented(pile, 'mr', (2, 1, 3), cache=cache, workers=1)
    assert files == {p: p.stat().st_mtime_ns for p in cache.glob('*.npy')} and again.fingerprint() == more.fingerprint()
    torn = next(iter(files)); whole = torn.read_bytes()
    for cut in (whole[:1000], b''):
        torn.unlink(); torn.write_bytes(cut)
        with pytest.warns(UserWarning, match='do not load'): again = augmented(pile, 'mr', (2, 1, 3), cache=cache, workers=1)
        assert torn.read_bytes() == whole and again.fingerprint() == more.fingerprint()

def test_SPINES_E3_changed_voxels_settings_and_modality_are_other_files(pile, cache, tmp_path):
    one, count = pile.of([pile.patient[0]]), lambda: len(list(tmp_path.glob('*.npy')))
    moved = Volumes3d([one.x[0] + np.float32(1e-3)], one.patient, spacing=one.spacing)
    for k, call in enumerate((lambda: augmented(one, 'mr', (0, 1, 0), cache=tmp_path), lambda: augmented(moved, 'mr', (0, 1, 0), cache=tmp_path), lambda: augmented(one, 'ct', (0, 1, 0), cache=tmp_path),
                              lambda: augmented(one, 'mr', (0, 2, 0), cache=tmp_path), lambda: augmented(one, 'mr', (0, 1, 0), seed=5, cache=tmp_path))):
        call(); assert count() == k + 1
    refuses('no such modality', lambda: augmented(one, 'us')); refuses('cannot keep copies', lambda: augmented(one, 'mr', (0, 0, 0), cache=next(tmp_path.glob('*.npy'))))

# ---- batches

def test_SPINES_E4_a_batch_depends_on_the_step_alone():
    d = UnpairedVolumes(noise((8, 9, 10), (9, 9, 9)), noise((10, 10, 10), who='xyz', seed=1), block=(4, 8, 6), batch=2)
    b = d[11]
    assert b.x_mr.shape == b.x_ct.shape == (2, 1, 4, 8, 6) and b.x_mr.dtype == torch.float32 and set(b) == {'x_mr', 'x_ct', 'name'}
    for t in (0, 5): d[t]
    assert torch.equal(d[11].x_mr, b.x_mr) and torch.equal(d[11].x_ct, b.x_ct) and d[11].name == b.name and not torch.equal(d[12].x_mr, b.x_mr)
    same = UnpairedVolumes(noise((8, 9, 10), (9, 9, 9)), noise((10, 10, 10), who='xyz', seed=1), block=(4, 8, 6), batch=2)
    assert torch.equal(same[11].x_ct, b.x_ct) and same.fingerprint == d.fingerprint

def test_SPINES_E4_every_place_of_the_block_comes_and_is_cut_from_the_volume():
    x = np.arange(6*5*4, dtype=np.float32).reshape(6, 5, 4)
    d = UnpairedVolumes(Volumes3d([x], ['a']), noise((6, 5, 4), who='z'), block=(3, 5, 2))
    first = [int(d[t].x_mr[0, 0, 0, 0, 0]) for t in range(300)]
    assert set(first) == {20*i + k for i in range(4) for k in range(3)}
    b, i = d[3].x_mr[0, 0].numpy(), first[3]
    assert np.array_equal(b, x[i//20:i//20 + 3, :, i % 4:i % 4 + 2])
    whole = UnpairedVolumes(Volumes3d([x], ['a']), noise((6, 5, 4), who='z'))[0].x_mr
    assert np.array_equal(whole[0, 0].numpy(), x)

def test_SPINES_E4_96_labels_and_truth_reach_no_batch():
    x, h = noise((6, 6, 6), (6, 6, 6)), noise((6, 6, 6), who='z')
    seen = Volumes3d(x.x, x.patient, [np.ones((6, 6, 6))]*2, [np.ones((6, 6, 6))]*2)
    a, b = UnpairedVolumes(x, h), UnpairedVolumes(seen, h)
    assert all(torch.equal(a[t].x_mr, b[t].x_mr) for t in range(5)) and a.fingerprint == b.fingerprint and b.mr.truth is None

@pytest.mark.parametrize('change', [dict(seed=1), dict(batch=2), dict(block=(4, 4, 4)), dict(min_std=.1)])
def test_the_fingerprint_tells_streams_apart(change):
    a, b = noise((6, 6, 6)), noise((6, 6, 6), who='z', seed=2)
    assert UnpairedVolumes(a, b).fingerprint != UnpairedVolumes(a, b, **change).fingerprint

def test_33_39_95_what_cannot_work_is_refused():
    a, z = noise((6, 6, 6)), noise((6, 6, 6), who='z')
    refuses(r'block is larger.*\(6, 6, 6\).*\(8, 6, 6\)', lambda: UnpairedVolumes(a, z, block=(8, 6, 6))); refuses('stand in both', lambda: UnpairedVolumes(a, a))
    refuses('is empty', lambda: UnpairedVolumes(a, Volumes3d([], []))); refuses('several sizes', lambda: UnpairedVolumes(noise((6, 6, 6), (7, 6, 6)), z, batch=2))
    refuses('50 blocks', lambda: UnpairedVolumes(Volumes3d([np.zeros((4, 4, 4), np.float32)], ['air']), z)[0])

def test_float16_on_disk_becomes_float32(more):
    d = UnpairedVolumes(more, noise((22, 20, 64), who='z'), block=(16, 16, 32))
    assert d[0].x_mr.dtype == torch.float32 and d[0].name[0].startswith('spine0000')

# ---- real MR

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Five coarse people; p2 has both contrasts, p1 is stored from right to left."
    home, rows = tmp_path_factory.mktemp('real'), ['case,image,label,contrast,patient']
    for k, (kind, who) in enumerate((('T1', 0), ('T1', 1), ('T1', 2), ('T2', 2), ('T2', 3), ('T2', 4))):
        p = patient(who, (14, 22, 26), (8., 8., 8.), cobb=5.)
        for v, n in ((render_mr(p, kind.lower()), f'c{k}'), (vertebra_mask(p), f'c{k}_label')):
            if who == 1: v = Volume(v.data[::-1].copy(), v.affine @ [[-1, 0, 0, 13], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], v.kind)
            write_volume(v, home/f'{n}.nii.gz')
        rows.append(f'c{k},c{k}.nii.gz,c{k}_label.nii.gz,{kind},p{who}')
    (home/'index.csv').write_text('\n'.join(rows))
    return home

def test_30_real_scans_are_turned_by_their_affine_and_stretched(folder):
    scans = mr_scans(folder, 'T1', (8., 4., 8.))
    assert [s.patient for s in scans] == ['p0', 'p1', 'p2'] and all(s.image.axes == 'RAS' and s.image.shape == s.mask.shape == (14, 44, 26) for s in scans)
    p = patient(1, (14, 22, 26), (8., 8., 8.), cobb=5.)
    near(mr_scans(folder, 'T1', (8., 8., 8.))[1].image.data, stretch(render_mr(p, 't1'), 'mr').data, 1e-3)
    assert np.array_equal(mr_scans(folder, 'T1', (8., 8., 8.))[1].mask.data, vertebra_mask(p).data)
    refuses('no cases', lambda: mr_scans(folder, 'TIRM'))

def test_scans_without_marks_are_read_where_no_score_is_asked(tmp_path):
    p = patient(0, (14, 22, 26), (8., 8., 8.), cobb=5.)
    write_volume(render_mr(p, 't1'), tmp_path/'imagesTr'/'a.nii.gz'); write_volume(render_mr(patient(1, (14, 22, 26), (8., 8., 8.)), 't1'), tmp_path/'imagesTr'/'b.nii.gz')
    write_volume(p.labels, tmp_path/'labelsTr'/'a.nii.gz')
    refuses('without a mask', lambda: mr_scans(tmp_path, spacing=8.))
    a, b = mr_scans(tmp_path, spacing=(8., 8., 8.), marked=False)
    assert np.array_equal(a.levels.data, p.labels.data) and np.array_equal(a.mask.data, p.labels.data > 0) and b.mask is None and b.levels is None
    assert a.file.name == 'a.nii.gz' and mr_pile([a, b]).y is None and len(mr_pile([a]).y) == 1

@pytest.mark.parametrize('marked', (True, False))
@pytest.mark.parametrize('axis, mm', [(0, 37.), (2, 537.), (1, -.5)])
def test_20_a_label_that_lies_elsewhere_is_refused(tmp_path, axis, mm, marked):
    p, aside = patient(0, (14, 22, 26), (8., 8., 8.), cobb=5.), np.eye(4)
    aside[axis, 3] = mm
    write_volume(render_mr(p, 't1'), tmp_path/'imagesTr'/'a.nii.gz'); write_volume(Volume(vertebra_mask(p).data, aside @ p.labels.affine, 'label'), tmp_path/'labelsTr'/'a.nii.gz')
    refuses(f'a.nii.gz: label on another grid: found corners {abs(mm):.1f} mm apart', lambda: mr_scans(tmp_path, spacing=(8., 4., 4.), marked=marked))

def test_20_a_label_that_is_stored_the_other_way_round_stays(tmp_path):
    p = patient(0, (14, 22, 26), (8., 8., 8.), cobb=5.)
    y = vertebra_mask(p)
    for k, v in enumerate((y, Volume(y.data[:, ::-1].copy(), y.affine @ [[1, 0, 0, 0], [0, -1, 0, 21], [0, 0, 1, 0], [0, 0, 0, 1]], 'label'))):
        write_volume(render_mr(p, 't1'), tmp_path/str(k)/'imagesTr'/'a.nii.gz'); write_volume(v, tmp_path/str(k)/'labelsTr'/'a.nii.gz')
    a, b = [mr_scans(tmp_path/str(k), spacing=8.)[0].mask.data for k in (0, 1)]
    assert np.array_equal(a, b) and np.array_equal(a, y.data > 0)

def test_an_empty_label_is_said(tmp_path):
    p = patient(0, (14, 22, 26), (8., 8., 8.), cobb=5.)
    write_volume(render_mr(p, 't1'), tmp_path/'imagesTr'/'a.nii.gz'); write_volume(p.labels.with_data(0*p.labels.data), tmp_path/'labelsTr'/'a.nii.gz')
    with pytest.warns(UserWarning, match='a.nii.gz: empty label: nothing is marked'): assert not mr_scans(tmp_path, spacing=8.)[0].mask.data.any()

@pytest.mark.parametrize('dx', (-30., 0., 30.))
@pytest.mark.parametrize('mirrored', (False, True))
def test_a_ct_is_cut_around_the_column_wherever_it_lies(dx, mirrored):
    p = patient(4, (64, 46, 24), (6., 6., 8.), centre=(dx, 0., 60.))
    ct, bone = render_ct(p, 4), vertebra_mask(p)
    if mirrored: ct, bone = (Volume(v.data[::-1].copy(), v.affine @ [[-1, 0, 0, 63], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], v.kind) for v in (ct, bone))
    v = around_column(ct)
    assert v.axes == 'RAS' and v.shape == (13, 25, 24) and bone.like(v).data.sum() > .95*bone.data.sum()
    assert around_column(ct, reach=(20., 40.)).shape == (7, 15, 24)
    refuses('without bone', lambda: around_column(ct.with_data(np.clip(ct.data, -1000, 100))))

def test_columns_of_a_folder_share_one_scale_and_no_label_is_read(tmp_path):
    made = [render_ct(patient(s, (40, 30, 12), (9., 9., 16.), centre=(0., 0., 60.)), s) for s in (0, 3)]
    for s, v in zip((0, 3), made): write_volume(v, tmp_path/'imagesTr'/f'q{s}.nii.gz')
    c = ct_columns(tmp_path, (9., 4.5, 16.))
    cut = [around_column(v).resample((9., 4.5, 16.)) for v in made]
    assert c.pile.patient == ['q0', 'q3'] and c.pile.y is None and c.pile.spacing == (9., 4.5, 16.)
    for x, v in zip(c.pile.x, cut): near(x, stretch(v, 'ct').data, 1e-3)
    near(c.hu, np.mean([intensity_range(v, 'ct') for v in cut], 0), .5)
    high = ct_columns(tmp_path, (9., 4.5, 16.), -150.)
    assert high.hu[0] == -150 and high.hu[1] == pytest.approx(c.hu[1], abs=.5) and np.mean(high.pile.x[0] == -1) > np.mean(c.pile.x[0] == -1) + .1

def test_a_ct_that_is_not_in_hu_is_said(tmp_path):
    for s, up in ((0, 0), (3, 1024)):
        v = render_ct(patient(s, (40, 30, 12), (9., 9., 16.), centre=(0., 0., 60.)), s)
        write_volume(v.with_data(v.data + up), tmp_path/'imagesTr'/f'q{s}.nii.gz')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try: ct_columns(tmp_path, (9., 4.5, 16.))
        except XModSegError: pass                                                                   # a body of nothing but bone may not be found
    said = [str(w.message) for w in said if 'another unit' in str(w.message)]
    assert len(said) == 1 and said[0].startswith('q3: minimum ') and 'offset' in said[0]

def test_SPINES_E2_where_everybody_has_both_nobody_is_left_for_the_source(folder, tmp_path):
    table = (folder/'index.csv').read_text().splitlines()
    row = lambda k, kind, who: f'd{len(rows)},{folder}/c{k}.nii.gz,{folder}/c{k}_label.nii.gz,{kind},{who}'
    rows = []
    for kind, k, who in (('T1', 0, 'p0'), ('T1', 2, 'p2'), ('T2', 4, 'p0'), ('T2', 3, 'p2'), ('T2', 5, 'p2')): rows.append(row(k, kind, who))
    (tmp_path/'index.csv').write_text('\n'.join([table[0], *rows]))
    refuses('nobody has T2 alone: found all 2 patients have T1, needed patients seen in T2 only', lambda: mr_cohort(tmp_path, 'T2', 'T1', 0, 2, 8.))
    refuses('nobody has T1 alone', lambda: mr_cohort(tmp_path, 'T1', 'T2', 0, 2, 8.))
    with pytest.raises(XModSegError) as e: mr_cohort(tmp_path, 'T2', 'T1', 0, 2, 8.)
    assert e.value.fix == 'take the T1 rows of some out of index.csv'
    (tmp_path/'index.csv').write_text('\n'.join([table[0], *rows[1:]]))                             # p0 has T2 alone
    assert [s.patient for s in mr_cohort(tmp_path, 'T2', 'T1', 0, 1, 8.).train_source] == ['p0']

def test_SPINES_E2_who_has_both_contrasts_belongs_to_the_target(folder):
    folds = [mr_cohort(folder, 'T2', 'T1', k, 3, 8., 0) for k in range(3)]
    assert sorted(s.patient for f in folds for s in f.test_target) == ['p0', 'p1', 'p2']
    for f in folds:
        assert [s.patient for s in f.train_source] == ['p3', 'p4'] and len(f.train_target) == 2
        refuse_shared(**{k: [s.patient for s in v] for k, v in f.items()})
    assert {s.patient for s in mr_cohort(folder, 'T1', 'T2', 0, 3, 8.).train_source} == {'p0', 'p1'}
    refuses('no such fold', lambda: mr_cohort(folder, fold=4)); refuses('too few patients', lambda: mr_cohort(folder, fold=0, folds=7))

def test_real_scans_become_slices_and_slabs(folder):
    scans = mr_scans(folder, 'T1', (8., 4., 4.))
    s = mr_slices(scans, least=4, multiple=16)
    assert s.x[0].shape == (64, 48) and min(y.sum() for y in s.y) >= 4 and set(s.patient) == {'p0', 'p1', 'p2'} and s.spacing == (4., 4.)
    up = np.argwhere(scans[0].mask.data[7].any(0)).max()
    assert [y for y, p in zip(s.y, s.patient) if p == 'p0'] and mr_slices(scans[:1]).y[7][:52].any(1).argmax() == 51 - up     # the head is on top
    pile = mr_pile(scans)
    assert len(pile) == 3 and pile.y[0].max() == 1
    near(pile.spacing, (8, 4, 4), 1e-5)
    assert UnpairedVolumes(pile, noise((14, 44, 52), who='z'), block=(4, 32, 32))[0].x_mr.shape == (1, 1, 4, 32, 32)

def test_real_lumbar_mr():
    root = Path(os.environ.get('XMODSEG_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')/'spine_mr_vb'/'open'
    if not root.is_dir(): pytest.skip('no real scans here')
    g = mr_cohort(root, 'T2', 'T1', 0, 4, (4., 3., 3.))
    assert len(g.train_source) == 11 and len(g.train_target) + len(g.test_target) == 11 and len({s.patient for s in g.train_source + g.train_target + g.test_target}) == 22
    for s in g.train_target[:2] + g.test_target[:1]:
        bodies = s.mask.data.mean()
        assert s.image.axes == 'RAS' and .03 < bodies < .35 and s.image.data[s.mask.data > 0].std() < s.image.data.std()*1.2

def small_mr(seed=0): v = render_mr(patient(seed, (14, 22, 26), (8., 8., 8.), cobb=5.), 't1'); return v.with_data(np.rint(v.data))

def small_bone(seed=0): y = vertebra_mask(patient(seed, (14, 22, 26), (8., 8., 8.), cobb=5.)); return y.with_data((y.data > 0)*1)

def test_39_one_scan_under_two_names_is_refused(tmp_path):
    for n in 'ab': write_volume(small_mr(), tmp_path/f'{n}.nii.gz'); write_volume(small_bone(), tmp_path/f'{n}_label.nii.gz')
    (tmp_path/'index.csv').write_text('case,image,label,contrast,patient\na,a.nii.gz,a_label.nii.gz,T2,p0\nb,b.nii.gz,b_label.nii.gz,T1,p1\n')
    with pytest.raises(XModSegError, match='one scan under two names: found a in train_source, b in test_target'): mr_cohort(tmp_path, 'T2', 'T1', 0, 1, 8.)

def test_38_image_and_label_swapped(tmp_path):
    write_volume(small_bone(), tmp_path/'imagesTr'/'a.nii.gz'); write_volume(small_mr(), tmp_path/'labelsTr'/'a.nii.gz')
    with pytest.raises(XModSegError, match='are the two swapped'): mr_scans(tmp_path, spacing=8.)

def test_11_a_volume_with_nan_is_refused_and_not_passed_over():
    rng = np.random.default_rng(0); x = [rng.uniform(-1, 1, (8, 8, 8)).astype(np.float32) for _ in range(3)]; x[1][0, 0, 0] = np.nan
    with pytest.raises(XModSegError, match='bad: voxels that are no numbers: found 1 NaN'): UnpairedVolumes(Volumes3d(x[:2], ['good', 'bad']), Volumes3d(x[2:], ['z']))

@pytest.mark.parametrize('block', [(4, 4), (4, 4, 4, 4), (0, 4, 4)])
def test_a_block_has_three_sides(block):
    x = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8)).astype(np.float32)
    with pytest.raises(XModSegError, match='a block has three sides'): UnpairedVolumes(Volumes3d([x], ['a']), Volumes3d([x], ['z']), block=block)

def test_a_level_between_the_first_and_the_last_face_is_whole():
    q = np.full((17, 74, 3), 18.); n = (10, 10, 10)
    def kept(x): p = q.copy(); p[8, 0, 0] = x; return LEVELS[8] in spines._case(1, 0., dict(mr=np.zeros(n), ct=np.zeros(n), labels=np.zeros(n, np.uint8), affine=np.diag([4., 4, 4, 1]), points=p)).landmarks
    assert [kept(x) for x in (-2.1, -1.9, 37.9, 38.1)] == [False, True, True, False]

def test_a_ct_without_a_column_in_its_middle_is_refused():
    d = np.full((60, 50, 20), -1000., np.float32); d[5:55, 5:45] = 40; d[6:11, 20:28] = 600
    with pytest.raises(XModSegError, match='no column in the middle third'): around_column(Volume(d, np.diag([5., 5, 5, 1])))
    half = render_ct(patient(4, (64, 46, 24), (6., 6., 8.), centre=(0., 0., 60.)), 4).crop((30, 0, 0), (64, 46, 24))
    with pytest.raises(XModSegError, match='no column in the middle third'): around_column(half)

def test_arms_beside_the_body_are_not_the_column():
    ct = render_ct(patient(4, (64, 46, 24), (6., 6., 8.), centre=(0., 0., 60.)), 4)
    arms = ct.data.copy(); arms[8:14, 16:30] = arms[50:56, 16:30] = 1500.
    assert np.allclose(around_column(ct.with_data(arms)).affine, around_column(ct).affine)

def test_no_scans_for_a_pile():
    with pytest.raises(XModSegError, match='no scans'): mr_pile([])

def test_several_sizes_whole_fit_no_pool():
    x = [np.random.default_rng(0).uniform(-1, 1, s).astype(np.float32) for s in ((16, 32, 16), (16, 16, 32))]
    with pytest.raises(XModSegError, match='several sizes'): UnpairedVolumes(Volumes3d(x, ['a', 'b']), Volumes3d(x[:1], ['z']))

def test_one_spacing_for_all_axes(tmp_path):
    write_volume(render_ct(patient(3, (40, 30, 12), (9., 9., 16.), centre=(0., 0., 60.)), 3), tmp_path/'imagesTr'/'q.nii.gz')
    assert ct_columns(tmp_path, 9.).pile.spacing == (9., 9., 9.)
