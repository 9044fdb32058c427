"Who is trained on, who is scored: three kinds of cohort and their cache. Numbers in names are rows of the fault table."
import ast, math, os, pickle, warnings
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
import xmodseg.cbct
from xmodseg import cohort
from xmodseg.cohort import WORLDS, all_of, folder_cohort, own_scan, phantom_case, phantom_cohort, phantom_field, phantom_scan, phantoms, simulated_cohort, simulated_scan
from xmodseg.core import XModSegError
from xmodseg.files import read_volume, write_volume
from xmodseg.folders import Case, cases
from xmodseg.implicit import draw_params
from xmodseg.phantom import patient, render_ct, tissue_hu, vertebra_mask
from xmodseg.unpaired import Slices, Unpaired, cut
from xmodseg.volume import Volume, to_slices, window

GRID = dict(shape=(56, 42, 32), spacing=6., fov_mm=210., side=32, within=24., hu=(-400, 1100), train=1, test=1)
PARTS = ('train_l', 'train_h', 'test_l', 'test_h')


def refuses(*words, call):
    "A refusal in one sentence that holds these words, what was found and what is needed."
    with pytest.raises(XModSegError) as e: call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

@pytest.fixture(scope='module')
def people():
    "CT in HU and a label map (bone 5, its upper half 6) of six coarse phantoms."
    made = []
    for k in range(6):
        p = patient(k, shape=(56, 42, 12), spacing=6.)
        bone = vertebra_mask(p).data.astype(int)
        made.append((render_ct(p), p.labels.with_data(bone*(5 + (np.indices(bone.shape)[2] > 5)), 'label')))
    return made

def put(folder, k, people, name=None, split='Tr', label=True):
    "One phantom as files of a data set."
    name = name or f'p{k:02d}'
    write_volume(people[k][0], folder/f'images{split}'/f'{name}_0000.nii.gz')
    if label: write_volume(people[k][1], folder/f'labels{split}'/f'{name}.nii.gz')

@pytest.fixture(scope='module')
def real(tmp_path_factory, people):
    folder = tmp_path_factory.mktemp('real')
    for k in range(6): put(folder, k, people)
    return folder

@pytest.fixture
def own(tmp_path, people):
    "Two CBCTs without labels, two labelled CTs of others."
    for k in (0, 1): put(tmp_path/'cbct', k, people, f'a{k:02d}', label=False)
    for k in (2, 3): put(tmp_path/'ct', k, people, f'b{k:02d}')
    return tmp_path

@pytest.fixture
def quick(monkeypatch):
    "A scanner that only adds 50."
    monkeypatch.setattr(xmodseg.cbct, 'cbct', lambda ct, **settings: ct.with_data(ct.data + 50))

def groups(c): return {k: sorted(set(c[k].patient)) if len(c[k]) else [] for k in PARTS}


# ---- generated patients

@pytest.fixture(scope='module')
def scan(): return phantom_scan(3, True, 'mild', GRID)

def test_a_scan_has_image_mask_and_truth_on_one_grid(scan):
    assert scan.image.shape == scan.mask.shape == scan.truth.shape == GRID['shape']
    assert scan.mask.kind == 'label' and np.unique(scan.mask.data).tolist() == [0, 1]
    np.testing.assert_array_equal(scan.truth.data, render_ct(patient(3, GRID['shape'], 6.), seed=3).data)
    assert scan.truth.data[scan.mask.data > 0].mean() > 120 + scan.truth.data[(scan.mask.data == 0) & (scan.truth.data > -200)].mean()

def test_a_clean_scan_is_its_own_truth():
    v = phantom_scan(3, False, grid=GRID)
    assert v.image is v.truth

def test_slices_fit_their_own_truth_best():
    scan = phantom_scan(3, True, 'mild', {**GRID, 'fov_mm': None})
    s = cut(scan.image, scan.mask, scan.truth, hu=GRID['hu'], within=54.)
    alike = lambda a, b: np.corrcoef(a.ravel(), b.ravel())[0, 1]
    for i in range(4, len(s) - 4):
        assert alike(s.x[i], s.truth[i]) > max(alike(s.x[i], s.truth[i-4]), alike(s.x[i], s.truth[i+4]))
        bone = s.y[i] > 0
        if bone.sum() > 20: assert s.truth[i][bone].mean() > s.truth[i][~bone & (s.truth[i] > -.8)].mean()

def test_case_is_a_window_around_the_spine_head_up(scan):
    c = phantom_case(3, True, 'mild', GRID)
    assert {k: (v.shape, str(v.dtype)) for k, v in c.items()} == dict(x=((8, 32, 32), 'float32'), y=((8, 32, 32), 'uint8'), truth=((8, 32, 32), 'float32'))
    middle = np.flatnonzero(np.abs(np.arange(56) - 27.5)*6 <= 24)
    whole = window(to_slices(scan.truth.data), *GRID['hu'])[middle]
    at = [k for k in range(11) if np.array_equal(whole[:, :, k:k+32], c['truth'])]
    assert len(at) == 1
    assert c['y'].sum() == scan.mask.data[middle].sum()                                        # no vertebra is cut off
    np.testing.assert_array_equal(c['y'][2, 0, :], scan.mask.data[middle[2], :, -1][::-1][at[0]:at[0]+32])   # row 0 is the top, column 0 the front

@pytest.mark.parametrize('rows, at', [((14, 18), 11), ((0, 4), 20), ((35, 40), 0)])
def test_more_room_in_front_of_the_spine_than_behind(rows, at):
    bone = np.zeros((4, 40, 4), int); bone[1, rows[0]:rows[1], 2] = 1                            # y counts from the back, columns from the front
    assert cohort._window_at(Volume(bone, np.eye(4), 'label'), 20) == at                        # the spine's middle at column 23.5 of 40: 23.5 - 0.62*20 = 11.1

@pytest.mark.parametrize('width, spacing, within, kept', [(55, 6., 24., 9), (56, 6., 24., 8), (55, 6., 20., 7), (56, 6., 20., 6), (57, 5.5, 22., 9)])
def test_a_field_holds_the_slices_of_the_pile(width, spacing, within, kept):
    grid = {**GRID, 'shape': (width, 42, 32), 'spacing': spacing, 'within': within, 'fov_mm': None}
    case, field = phantom_case(3, True, 'mild', grid), phantom_field(3, 'mild', grid)
    assert len(case['x']) == kept
    for k, v in dict(x=field.image, truth=field.truth).items(): np.testing.assert_array_equal(window(to_slices(v.data), *GRID['hu']).astype(np.float32), case[k])
    np.testing.assert_array_equal(to_slices(field.mask.data), case['y'])
    whole = phantom_scan(3, False, 'mild', grid).truth                                          # and they stay where they were in the patient
    at = np.rint(np.linalg.inv(whole.affine) @ field.truth.affine[:, 3])[:3].astype(int)
    np.testing.assert_array_equal(whole.data[tuple(slice(a, a + n) for a, n in zip(at, field.truth.shape))], field.truth.data)

def test_a_window_wider_than_the_slices_is_refused():
    assert phantom_case(3, False, grid={**GRID, 'side': 42})['x'].shape == (8, 32, 42)
    for make in (lambda g: phantom_case(3, False, grid=g), lambda g: phantom_field(3, grid=g)): refuses('wider than the slices', 'side=43', 'at most 42', call=lambda: make({**GRID, 'side': 43}))

def test_worlds_have_what_is_promised():
    for w in WORLDS.values():
        assert w['shape'][2] == w['side'] <= w['shape'][1] and w['train'] >= 1 and w['test'] >= 1
    assert WORLDS['full']['side'] == 256 and WORLDS['full']['hu'] == (-1000, 2000)


# ---- cache

def test_COHORT_E1_75_a_damaged_file_is_made_again_with_a_warning(tmp_path):
    first = phantoms([5], False, grid=GRID, cache=tmp_path)
    file, = tmp_path.iterdir()
    for damage in (file.read_bytes()[:900], b'', b'<html>', file.read_bytes()[:2000] + b'x' + file.read_bytes()[2001:]):
        file.write_bytes(damage)
        with pytest.warns(UserWarning, match='do not load.*made again'): again = phantoms([5], False, grid=GRID, cache=tmp_path)
        assert again.fingerprint() == first.fingerprint()
    with warnings.catch_warnings(): warnings.simplefilter('error'); phantoms([5], False, grid=GRID, cache=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]                                  # nothing is left lying about

def test_second_call_makes_nothing(tmp_path, monkeypatch):
    a = phantoms([5, 6], False, grid=GRID, cache=tmp_path, workers=1)
    monkeypatch.setattr(cohort, 'all_of', lambda jobs, make, workers: [] if not jobs else 1/0)
    b = phantoms(iter([5, 6]), False, grid={**GRID, 'train': 9}, cache=tmp_path)
    assert a.fingerprint() == b.fingerprint() and a.truth is not None
    with pytest.raises(ZeroDivisionError): phantoms([5], False, grid={**GRID, 'within': 12.}, cache=tmp_path)

def test_COHORT_E1_76_changed_code_or_setting_is_another_file(tmp_path, monkeypatch):
    name = lambda *a: cohort._file(*a, tmp_path)
    names = [name(1, True, 'paper', GRID), name(2, True, 'paper', GRID), name(1, False, 'paper', GRID), name(1, True, 'hard', GRID), name(1, True, 'paper', {**GRID, 'hu': (0, 1)})]
    monkeypatch.setattr(cohort, '_code_version', lambda: 'changed')
    assert len({*names, name(1, True, 'paper', GRID)}) == 6

def test_COHORT_E1_76_every_module_on_the_way_is_in_the_name():
    here, todo, seen = Path(cohort.__file__).parent, ['cohort'], set()
    while todo:
        if (m := todo.pop()) in seen: continue
        seen.add(m)
        tree = ast.parse((here/f'{m}.py').read_text(encoding='utf-8'))
        todo += [n.module.removeprefix('xmodseg.') for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('xmodseg.'))]
    assert seen - {'core', 'files', 'folders'} == set(cohort._MAKERS)                           # core makes no number; files and folders are for real scans

def test_threads_of_the_caller_are_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort, 'phantom_case', lambda *a: dict(x=np.zeros((1, 2, 2)), y=np.zeros((1, 2, 2)), truth=np.full((1, 2, 2), torch.get_num_threads())))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert phantoms([1], False, grid=GRID, cache=tmp_path).truth[0].max() == 1
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)

def test_72_73_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setattr(cohort, 'phantom_case', lambda *a: dict(x=np.zeros((1, 2, 2)), y=np.zeros((1, 2, 2)), truth=np.zeros((1, 2, 2))))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        refuses('cannot keep slices', 'XMODSEG_CACHE', 'file', call=lambda: phantoms([1], False, grid=GRID, cache=tmp_path/'file'/'deep'))
        refuses('cannot keep copies', 'file', call=lambda: cohort._keep(tmp_path/'file'/'c.npy', np.zeros(3), 'copies'))

def test_one_array_is_kept_as_one(tmp_path):
    cohort._keep(tmp_path/'c.npy', np.arange(5, dtype=np.float16))
    assert np.array_equal(np.load(tmp_path/'c.npy', mmap_mode='r'), np.arange(5)) and [p.name for p in tmp_path.iterdir()] == ['c.npy']

def test_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('XMODSEG_CACHE', str(tmp_path/'here'))
    phantoms([5], False, grid=GRID)
    assert len(list((tmp_path/'here').glob('*.npz'))) == 1

def test_78_79_workers_change_nothing(tmp_path, cache):
    one = phantoms([21, 22], True, 'mild', GRID, cache, workers=1)
    two = phantoms([21, 22], True, 'mild', GRID, tmp_path, workers=2)
    assert one.fingerprint() == two.fingerprint() and one.patient == ['phantom0021']*8 + ['phantom0022']*8
    np.testing.assert_array_equal(one.truth, two.truth)

@pytest.mark.parametrize('workers', [0, 1, 2, 5])
def test_all_of_keeps_the_order_and_passes_an_error_on(workers):
    assert all_of([9, 4, 1, 16], math.sqrt, workers) == [3, 2, 1, 4] and all_of([], math.sqrt, workers) == []
    with pytest.raises(ValueError): all_of([1, -1], math.sqrt, workers)

def test_61_a_refusal_in_a_worker_keeps_its_words():
    assert pickle.loads(pickle.dumps(XModSegError('no such severity', found='x', needed='mild'))).found == 'x'
    with pytest.raises(XModSegError, match='no such contrast phase') as e: all_of(['native', 'venous'], partial(tissue_hu, draw_params(1)), 2)
    assert e.value.found == 'venous'

def test_a_worker_that_dies_is_named(): refuses('a worker process died', 'workers=1', call=lambda: all_of([3, 3], os._exit, 2))

def test_unknown_severity(tmp_path): refuses('no such severity', 'awful', call=lambda: phantoms([1], True, 'awful', GRID, tmp_path, workers=1))


# ---- three kinds of cohort

def test_COHORT_E2_four_groups_of_generated_patients(cache, monkeypatch):
    monkeypatch.setitem(WORLDS, 'tiny', GRID)
    c = phantom_cohort('tiny', severity='mild', cache=cache, workers=1)
    assert groups(c) == dict(train_l=['phantom0000'], train_h=['phantom1000'], test_l=['phantom2000'], test_h=['phantom3000'])
    assert list(c.scans) == ['phantom2000'] and c.hu == GRID['hu'] and c.train_l.spacing == (6., 6.)
    v = pickle.loads(pickle.dumps(c.scans['phantom2000']))()
    s = cut(v.image, v.mask, v.truth, hu=GRID['hu'])   # the field of view is the pile that is scored, voxel for voxel
    assert len(s) == len(c.test_l) and np.allclose(np.stack(s.x), np.stack(c.test_l.x), atol=1e-5) and (np.stack(s.y) == np.stack(c.test_l.y)).all()
    b = Unpaired(c.train_l, c.train_h, side=16)[0]
    assert b.name[0].startswith('phantom0000') and ' / phantom1000' in b.name[0]

def test_folds_of_generated_patients_never_meet(monkeypatch):
    monkeypatch.setattr(cohort, 'phantoms', lambda seeds, *a, **k: Slices([np.zeros((2, 2))]*len(seeds), [f'phantom{s:04d}' for s in seeds]))
    seen = [p for f in range(3) for part in groups(phantom_cohort('full', f)).values() for p in part]
    assert len(seen) == len(set(seen)) == 3*2*(24 + 8)
    refuses('no such fold', 'found -1', call=lambda: phantom_cohort('tiny', -1))
    refuses('no such size', call=lambda: phantom_cohort('big'))

def test_COHORT_E3_simulated_truth_is_the_clean_ct(real):
    c = simulated_cohort(real, spacing=6., severity='mild', least=5)
    g = groups(c)
    assert sorted(map(len, g.values())) == [2, 2, 2, 2] and g['test_l'] == g['test_h']
    assert sorted(g['train_l'] + g['train_h'] + g['test_l']) == [f'p{k:02d}' for k in range(6)]
    np.testing.assert_array_equal(c.test_l.truth, c.test_h.x); np.testing.assert_array_equal(c.test_l.y, c.test_h.y); np.testing.assert_array_equal(c.train_h.x, c.train_h.truth)
    ct = cut(*own_scan(cases(real)[int(g['test_l'][0][1:])]).values(), 0, 6., (-400, 1100), least=5)
    np.testing.assert_array_equal(ct.x, c.test_l.of(g['test_l'][:1]).truth)
    assert np.abs(np.stack(c.test_l.x) - c.test_l.truth).mean() > .01 and min(y.sum() for y in c.train_h.y) >= 5
    assert list(c.scans) == g['test_l'] and c.scans[g['test_l'][0]]().image.shape == (56, 42, 12) and c.hu == (-400, 1100)

def test_COHORT_E3_everybody_is_tested_once(real, quick):
    folds = [groups(simulated_cohort(real, fold=f, folds=3, spacing=6., least=5)) for f in range(3)]
    assert sorted(sum((g['test_l'] for g in folds), [])) == [f'p{k:02d}' for k in range(6)]
    for g in folds: assert not set(g['train_l']) & set(g['train_h']) and not set(g['test_l']) & set(g['train_l'] + g['train_h']) and len(g['train_l'] + g['train_h']) == 4
    assert groups(simulated_cohort(real, fold=0, folds=3, spacing=6., least=5)) == folds[0] != groups(simulated_cohort(real, fold=0, folds=3, spacing=6., least=5, seed=1))

def test_the_label_value_is_selected(real, quick, people):
    all_, low = [simulated_cohort(real, label=l, spacing=6., least=1) for l in (None, 5)]
    assert sum(y.sum() for y in low.train_h.y) < sum(y.sum() for y in all_.train_h.y)
    case = cases(real)[2]
    for l, want in ((None, people[2][1].data > 0), (5, people[2][1].data == 5), (6, people[2][1].data == 6)):
        for v in (simulated_scan(case, l, False), own_scan(case, l)): np.testing.assert_array_equal(v.mask.data, want)
    refuses('no slices in train_l', 'label 9', 'check the label value', call=lambda: simulated_cohort(real, label=9, spacing=6.))

def test_a_patient_s_scanner_does_not_depend_on_the_fold(real):
    a, b = [simulated_scan(cases(real)[1], None, True, 'mild').image.data for _ in range(2)]
    np.testing.assert_array_equal(a, b)
    assert simulated_scan(cases(real)[1], None, False).image.data.max() > 200

@pytest.mark.parametrize('kwargs, words', [(dict(fold=4), ('no such fold', 'found 4', '0 to 3')), (dict(fold=-1), ('no such fold',)), (dict(folds=7), ('too few patients', 'found 6')), (dict(folds=1), ('too few',))])
def test_folds_out_of_range(real, quick, kwargs, words): refuses(*words, call=lambda: simulated_cohort(real, spacing=6., **kwargs))

def test_unlabelled_ct_cannot_be_simulated(tmp_path, people):
    put(tmp_path, 0, people, label=False)
    refuses('no scan has a label', '1 scans, 0 labels', call=lambda: simulated_cohort(tmp_path))

def test_two_scans_of_one_patient_stay_together(tmp_path, people, quick):
    for k, n in enumerate(('a1_1', 'a1_2', 'b2', 'c3')): put(tmp_path, k, people, n)
    for f in range(3):
        c = simulated_cohort(tmp_path, fold=f, folds=3, spacing=6., least=1)
        assert sorted(sum((v for k, v in groups(c).items() if k != 'test_h'), [])) == ['a1', 'b2', 'c3']
        if groups(c)['test_l'] == ['a1']: assert sorted(c.scans) == ['a1_1', 'a1_2'] and len(c.test_l) > max(len(c.train_l), len(c.train_h))

def test_index_csv_names_the_patients(tmp_path, people, quick):
    rows = ['case,image,label,patient']
    for k in range(3):
        write_volume(people[k][0], tmp_path/f'{k}.nii.gz'); write_volume(people[k][1], tmp_path/f'{k}_y.nii.gz')
        rows.append(f's{k},{k}.nii.gz,{k}_y.nii.gz,who{k}')
    (tmp_path/'index.csv').write_text('\n'.join(rows))
    c = simulated_cohort(tmp_path, label=5, folds=3, spacing=6., least=1)
    assert sorted(sum((v for k, v in groups(c).items() if k != 'test_h'), [])) == ['who0', 'who1', 'who2']


# ---- the reader's folders

def test_a_CBCT_in_another_unit_is_said(own, people):
    with warnings.catch_warnings():
        warnings.simplefilter('error'); folder_cohort(own, least=5)
    for f in (own/'cbct'/'imagesTr').iterdir():
        v = read_volume(f); write_volume(v.with_data(((v.data.clip(-1000, 1000) + 1000)*255/2000).astype(np.float32)), f, overwrite=True)
    with pytest.warns(UserWarning, match='the CBCTs fill .% of the window -1000 to 2000; are they in another unit'): folder_cohort(own, least=5)

def test_folder_without_labelled_cbct(own):
    c = folder_cohort(own, least=5)
    assert groups(c) == dict(train_l=['a00', 'a01'], train_h=['b02'], test_l=[], test_h=['b03']) or groups(c) == dict(train_l=['a00', 'a01'], train_h=['b03'], test_l=[], test_h=['b02'])
    assert c.test_l == [] and c.train_l.y is None and len(c.train_l) == 2*56 and list(c.scans) == ['a00', 'a01'] and not c.others and c.hu == (-1000, 2000)
    v = c.scans['a00']()
    assert v.mask is None and v.truth is None and v.image.shape == (56, 42, 12)
    assert len(Unpaired(c.train_l, c.train_h, side=8)[0].name) == 1

def test_folder_with_imagesTs(own, people):
    put(own/'cbct', 4, people, 'a04', 'Ts'); put(own/'cbct', 5, people, 'a05', 'Ts', label=False); put(own/'ct', 5, people, 'b05', 'Ts')
    write_volume(people[5][0].with_data(people[5][0].data + 1), own/'ct'/'imagesTs'/'b05_0000.nii.gz', overwrite=True)
    c = folder_cohort(own, label=5, least=5)
    assert groups(c) == dict(train_l=['a00', 'a01'], train_h=['b02', 'b03'], test_l=['a04'], test_h=['b05'])
    assert list(c.others) == ['a05', 'a00', 'a01'] and c.others['a05']().mask is None     # nobody can score a05, and it is not forgotten
    assert list(c.scans) == ['a04'] and set(np.unique(c.scans['a04']().mask.data)) == {0, 1} and c.test_l.y is not None and c.test_l.truth is None
    want = cut(*own_scan(Case('a04', 'a04', own/'cbct'/'imagesTs'/'a04_0000.nii.gz', own/'cbct'/'labelsTs'/'a04.nii.gz'), 5).values(), least=5)
    np.testing.assert_array_equal(c.test_l.x, want.x); np.testing.assert_array_equal(c.test_l.y, want.y)

@pytest.mark.parametrize('split', [True, False])
def test_an_index_with_a_column_split_says_who_is_scored(own, people, split):
    rows = ['case,image,label,patient' + ',split'*split]
    for k, side in ((0, 'Tr'), (1, 'Tr'), (4, 'Ts'), (5, 'Ts')):
        write_volume(people[k][0], own/'cbct'/f'{k}.nii.gz'); write_volume(people[k][1], own/'cbct'/f'{k}_y.nii.gz')
        rows.append(f's{k},{k}.nii.gz,{k}_y.nii.gz,who{k}' + f',{side}'*split)
    (own/'cbct'/'index.csv').write_text('\n'.join(rows))
    c = folder_cohort(own, least=1, held_out=.25)
    if split: assert groups(c)['train_l'] == ['who0', 'who1'] and groups(c)['test_l'] == ['who4', 'who5'] and list(c.scans) == ['s4', 's5']
    else: assert len(groups(c)['test_l']) == 1 and len(groups(c)['train_l']) == 3                # by chance, then

def test_held_out_by_patient_and_labels_do_not_choose_target_slices(own, people):
    for k in (0, 1): write_volume(people[k][1], own/'cbct'/'labelsTr'/f'a{k:02d}.nii.gz')
    put(own/'cbct', 4, people, 'a01_2', label=False)                                            # a second scan of a01
    c = folder_cohort(own, least=5)
    g = groups(c)
    assert g['test_l'] in (['a00'], ['a01']) and not set(g['test_l']) & set(g['train_l']) and set(g['test_l'] + g['train_l']) == {'a00', 'a01'}
    scans = {'a00': 1, 'a01': 2}
    assert len(c.train_l) == 56*scans[g['train_l'][0]]                                          # every slice, with a vertebra or not
    assert len(c.test_l) < 56 and min(y.sum() for y in c.test_l.y) >= 5
    assert groups(folder_cohort(own, least=5, held_out=0.))['test_l'] == []
    both = [groups(folder_cohort(own, least=5, held_out=.5, seed=s)) for s in (2, 3)]
    assert {tuple(g['test_l']) for g in both} == {('a00',), ('a01',)}                            # whoever is held out, every scan of that patient is
    for g in both: assert not set(g['test_l']) & set(g['train_l'])

def test_some_labelled_and_some_unlabelled_cbct(own, people):
    write_volume(people[0][1], own/'cbct'/'labelsTr'/'a00.nii.gz')                                # one labelled: too few to hold out, and not enough for a labelled pile
    c = folder_cohort(own, least=5)
    assert c.train_l.y is None and groups(c)['train_l'] == ['a00', 'a01'] and c.test_l == []

def test_spacing_of_the_files_or_one_spacing(own, people):
    ct, y = people[2]
    a = ct.affine.copy(); a[2, 2] = 4
    write_volume(Volume(ct.data, a), own/'ct'/'imagesTr'/'b02_0000.nii.gz', overwrite=True); write_volume(Volume(y.data, a, 'label'), own/'ct'/'labelsTr'/'b02.nii.gz', overwrite=True)
    refuses('pixels of two sizes', '6.0', '4.0', 'spacing=', call=lambda: folder_cohort(own, held_out=0., least=1))
    assert folder_cohort(own, held_out=0., least=1, spacing=6.).train_h.spacing == pytest.approx((6., 6.))

def test_pixels_of_two_sizes_in_the_two_domains_are_refused(own, people):
    for k in (0, 1): write_volume(people[k][0].resample((6., 6., 3.)), own/'cbct'/'imagesTr'/f'a{k:02d}_0000.nii.gz', overwrite=True)
    refuses('pixels of two sizes in the two domains', 'train_l [3.0, 6.0] mm', 'train_h [6.0, 6.0] mm', 'spacing=', call=lambda: folder_cohort(own, least=1))
    c = folder_cohort(own, least=1, spacing=6.)
    assert c.train_l.spacing == pytest.approx((6., 6.)) and c.train_h.spacing == pytest.approx((6., 6.))
    for k in (2, 3):
        for part, v, n in zip(('imagesTr', 'labelsTr'), people[k], ('_0000', '')): write_volume(v.resample((6., 6., 3.)), own/'ct'/part/f'b{k:02d}{n}.nii.gz', overwrite=True)
    assert folder_cohort(own, least=1).train_h.spacing == folder_cohort(own, least=1).train_l.spacing == pytest.approx((3., 6.))   # rectangles, and the same: rows are 3 mm, columns 6
    assert folder_cohort(own, least=1, axis=2).train_l.spacing == pytest.approx((6., 6.))
    for k in (0, 1): write_volume(people[k][0].resample((6., 3., 6.)), own/'cbct'/'imagesTr'/f'a{k:02d}_0000.nii.gz', overwrite=True)
    refuses('pixels of two sizes', 'train_l [6.0, 3.0] mm', 'train_h [3.0, 6.0] mm', call=lambda: folder_cohort(own, least=1))   # turned rectangles

@pytest.mark.parametrize('off, refused', [(1.0005, False), (1.01, True)])
def test_spacings_may_differ_by_rounding(own, people, off, refused):
    for k in (0, 1):
        v = people[k][0]
        write_volume(Volume(v.data, v.affine*[[1, off, off, 1]]), own/'cbct'/'imagesTr'/f'a{k:02d}_0000.nii.gz', overwrite=True)
    if refused: refuses('pixels of two sizes', call=lambda: folder_cohort(own, least=1))
    else: assert folder_cohort(own, least=1).train_h.spacing == pytest.approx((6., 6.))

def test_scored_pixels_of_another_size_are_refused(own, people):
    for part, v, n in zip(('imagesTs', 'labelsTs'), people[4], ('_0000', '')): write_volume(v.resample((6., 3., 3.)), own/'cbct'/part/f'a04{n}.nii.gz')
    refuses('pixels of two sizes', 'test_l [3.0, 3.0] mm', call=lambda: folder_cohort(own, least=1))

def test_ct_that_is_not_in_hu_is_said_and_cbct_needs_none(own, people):
    for name, k in (('ct', 2), ('cbct', 0)):
        v = people[k][0]
        write_volume(v.with_data(v.data + 1024), own/name/'imagesTr'/f'{"b" if name == "ct" else "a"}{k:02d}_0000.nii.gz', overwrite=True)
    with pytest.warns(UserWarning, match='another unit') as said: folder_cohort(own, least=1)
    said = [str(w.message) for w in said if 'another unit' in str(w.message)]
    assert len(said) == 1 and said[0].startswith('b02: minimum ')

@pytest.mark.parametrize('gone', ['cbct', 'ct'])
def test_8_a_missing_domain_is_named_with_both(own, gone):
    (own/gone).rename(own/'other')
    refuses("'cbct' and 'ct'", 'other', call=lambda: folder_cohort(own))
    refuses("'cbct' and 'ct'", 'no such folder', call=lambda: folder_cohort(own/'nowhere'))

def test_9_40_an_empty_domain_is_refused(own):
    for p in (own/'cbct'/'imagesTr').iterdir(): p.unlink()
    refuses('no cases', 'cbct', 'imagesTr', call=lambda: folder_cohort(own))

def test_39_40_the_same_patient_in_both_domains(own, people):
    put(own/'cbct', 4, people, 'b02', label=False)                                              # the same name
    refuses('same patient in both domains', 'cbct b02 and ct b02', 'dataset.json', call=lambda: folder_cohort(own))
    (own/'cbct'/'imagesTr'/'b02_0000.nii.gz').rename(own/'cbct'/'imagesTr'/'x_0000.nii.gz')
    folder_cohort(own, least=1)
    put(own/'cbct', 3, people, 'zoe', label=False)                                              # the same file
    refuses('same patient in both domains', 'cbct zoe and ct b03', call=lambda: folder_cohort(own))

def test_40_one_folder_for_both_domains(own, people, tmp_path):
    import shutil
    shutil.rmtree(own/'cbct'); shutil.copytree(own/'ct', own/'cbct')
    refuses('same patient in both domains', call=lambda: folder_cohort(own))

def test_a_ct_without_mask_is_named(own):
    (own/'ct'/'labelsTr'/'b03.nii.gz').unlink()
    refuses('1 CT scans without a mask', 'b03', call=lambda: folder_cohort(own))

def test_36_a_label_that_nobody_has(own): refuses('no slices in', 'train_h', 'label 7', call=lambda: folder_cohort(own, label=7))

def test_20_a_label_on_another_grid(own, people):
    a = people[2][1].affine.copy(); a[0, 3] += 37
    write_volume(Volume(people[2][1].data, a, 'label'), own/'ct'/'labelsTr'/'b02.nii.gz', overwrite=True)
    refuses('label on another grid', 'b02', call=lambda: folder_cohort(own))

@pytest.mark.parametrize('share', [1., 1.5, -.1, float('nan')])
def test_held_out_is_a_share(own, share): refuses('a share', str(share), call=lambda: folder_cohort(own, held_out=share))

def test_whatever_the_share_somebody_is_left_to_train_on(own):
    c = folder_cohort(own, held_out=.9); assert len(set(c.train_h.patient)) == 1 <= len(set(c.test_h.patient)) and not set(c.train_h.patient) & set(c.test_h.patient)


# ---- real scans, where there are some

def test_real_neck_ct(tmp_path, quick):
    root = Path(os.environ.get('XMODSEG_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')/'ct_neck_openkbp'/'open'
    if not (root/'index.csv').exists(): pytest.skip('no real scans here')
    head, *rows = (root/'index.csv').read_text(encoding='utf-8').splitlines()
    for r in rows[:4]:
        for f in r.split(',')[1:3]: (tmp_path/f).write_bytes((root/f).read_bytes())
    (tmp_path/'index.csv').write_text('\n'.join([head, *rows[:4]]))
    c = simulated_cohort(tmp_path, label=8, spacing=6.)
    g = groups(c)
    assert len(set(g['train_l'] + g['train_h'] + g['test_l'])) == 4 and c.test_l.spacing == pytest.approx((6., 6.))
    np.testing.assert_array_equal(c.test_l.truth, c.test_h.x)
    bone = np.stack(c.test_h.y) > 0
    assert np.stack(c.test_h.x)[bone].mean() > np.stack(c.test_h.x)[~bone].mean() + .2
