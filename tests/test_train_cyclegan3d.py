"What notebook 41 refuses before a volume is opened, and what it makes of a reader's folders."
import json, shutil
import matplotlib
import notebooks
import numpy as np
import pytest
from xmodseg.files import read_volume, write_volume
from xmodseg.phantom import patient, render_ct, render_mr

def begin(until='live =', **given): return notebooks.begin('41_train_cyclegan3d', until, **given)
def refuses(*words, out, until='live =', **given): notebooks.refused('41_train_cyclegan3d', until, words, out=str(out), **given)
def short(data, tmp_path):
    "The same folder with the first MR cut to 60 mm from foot to head."
    shutil.copytree(data, tmp_path/'short')
    v = read_volume(data/'mr'/'imagesTr'/'p1.nii.gz')
    shutil.rmtree(tmp_path/'short'/'mr'/'labelsTr')
    write_volume(v.crop((0, 0, 0), (v.shape[0], v.shape[1], 20)), tmp_path/'short'/'mr'/'imagesTr'/'p1.nii.gz', overwrite=True)
    return tmp_path/'short'

@pytest.fixture
def names_only(tmp_path):
    for f in ('mr/imagesTr/p1_1.nii.gz mr/imagesTr/p1_2.nii.gz mr/imagesTr/p2.nii.gz mr/imagesTr/p3.nii.gz mr/labelsTr/p2.nii.gz ct/imagesTr/q1.nii.gz').split():
        (tmp_path/'data'/f).parent.mkdir(parents=True, exist_ok=True); (tmp_path/'data'/f).touch()
    return tmp_path/'data'

def test_good_folders_pass_without_a_file_opened(names_only, tmp_path):
    names = begin(size='tiny', out=str(tmp_path/'o'), data=str(names_only), folds=3)
    assert names['listed'] == [None] and names['clinic']
    assert begin(size='tiny', out=str(tmp_path/'o2'))['listed'] == []

def test_folders_that_cannot_be_read(names_only, tmp_path):
    refuses('cannot be read', 'no such folder', out=tmp_path, data=str(tmp_path/'absent'), folds=2)
    (names_only/'ct').rename(names_only/'cts')
    refuses('cannot be read', 'cts, mr', 'mr and ct', out=tmp_path, data=str(names_only), folds=2)

@pytest.mark.parametrize('folds', (1, 4, 0))
def test_no_more_parts_than_patients(names_only, tmp_path, folds): refuses('no such number of parts', f'folds {folds}, 3 patients', '2 to 3', out=tmp_path, data=str(names_only), folds=folds)

def test_one_name_is_one_patient(names_only, tmp_path):
    (names_only/'ct'/'imagesTr'/'p3_9.nii.gz').touch()
    refuses('both mr and ct', 'p3', 'rename', out=tmp_path, data=str(names_only), folds=2)

def test_contrasts_choose_the_scans_of_an_index(names_only, tmp_path):
    (names_only/'mr'/'index.csv').write_text('case,image,contrast,patient\na,imagesTr/p1_1.nii.gz,T1,p1\nb,imagesTr/p2.nii.gz,T2,p2\nc,imagesTr/p3.nii.gz,T2,p3\n')
    assert begin(size='tiny', out=str(tmp_path/'o'), data=str(names_only), folds=2, contrasts='T2')['listed'] == ['T2']
    refuses('no such number of parts', '1 patients', out=tmp_path/'o2', data=str(names_only), folds=2, contrasts='T1')
    refuses('contrasts that are not there', 'found T1, T2', 'needed FLAIR', "-p contrasts 'T1 T2'", out=tmp_path/'o3', data=str(names_only), folds=2, contrasts='FLAIR')
    (names_only/'mr'/'index.csv').write_text('image,contrast\nimagesTr/p2.nii.gz,T2\nimagesTr/p3.nii.gz,T2\n')
    refuses('contrasts that are not there', 'found T2', 'needed T1', "-p contrasts 'T2'", out=tmp_path/'o4', data=str(names_only), folds=2)

def test_every_scan_of_a_folder_gets_a_ct_on_its_own_grid(tmp_path, monkeypatch):
    monkeypatch.setenv('XMODSEG_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('CI', '1'); matplotlib.use('Agg')
    data, grid = tmp_path/'data', ((26, 40, 44), (4., 3., 3.))
    for s in (1, 2):
        p = patient(s, *grid, centre=(0., -20., 100.))
        write_volume(render_mr(p, 't1', s), data/'mr'/'imagesTr'/f'p{s}.nii.gz')
        if s == 1: write_volume(p.labels.with_data(np.where((p.labels.data >= 1) & (p.labels.data <= 17), p.labels.data, 0), 'label'), data/'mr'/'labelsTr'/'p1.nii.gz')
    write_volume(render_ct(patient(3, (90, 60, 44), (4., 4., 3.), centre=(0., 0., 100.)), 3), data/'ct'/'imagesTr'/'q3.nii.gz')
    names = begin(until=None, size='tiny', out=str(tmp_path/'o'), data=str(data), rows='none gamma0', folds=2, steps=2, workers=1)
    record = json.loads((tmp_path/'o'/'metrics.json').read_text())
    assert [x['name'] for x in record['scans']['gamma0']] == [x['name'] for x in record['scans']['none']] and {x['name'] for x in record['scans']['none']} == {'p1', 'p2'}
    assert record['rows']['none']['all']['scans'] == 1 and record['rows']['none']['all']['p2s_mm'] > 0 and '-p folds 2' in record['command']
    for p in ('p1', 'p2'):
        whole, ct, bone = (read_volume(f) for f in (data/'mr'/'imagesTr'/f'{p}.nii.gz', tmp_path/'o'/'volumes'/f'{p}_gamma0_synthetic_ct.nii.gz', tmp_path/'o'/'volumes'/f'{p}_gamma0_bone.nii.gz'))
        assert ct.shape == bone.shape == whole.shape and np.allclose(ct.affine, whole.affine) and set(np.unique(bone.data)) <= {0, 1}
        lo, hi = names['columns'].hu
        assert ct.data.min() >= lo - 1 and ct.data.max() <= hi + 1
    begin(until=None, size='tiny', out=str(tmp_path/'o'), data=str(data), rows='none', folds=2, steps=2, workers=1)
    again = json.loads((tmp_path/'o'/'metrics.json').read_text())
    assert again['rows'] == record['rows'] and set(again['scans']) == {'none', 'gamma0'} and "-p rows 'gamma0 none'" in again['command']     # rows of two commands meet
    refuses('smaller than the block', 'p1: ', '48, 96, 96', until='REAL = dict', out=tmp_path/'o5', data=str(short(data, tmp_path)), folds=2, workers=1)
    for row in ('none', 'gamma0'): assert {x['name'] for x in names['found'][row] if 'error' in x} == {'p1'}      # p2 has no mask, and no score

def test_two_contrasts_of_real_scans_both_ways(tmp_path, monkeypatch):
    "An index.csv of two contrasts: each scan of the target is read once, by nets of the other part; the gap is that of the printed means."
    monkeypatch.setenv('XMODSEG_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('CI', '1'); matplotlib.use('Agg')
    data, rows = tmp_path/'data', ['image,label,patient,contrast']
    for s, kind in enumerate('t1 t1 t2 t2'.split()):
        p = patient(s, (12, 48, 48), (4., 2.2, 2.2), centre=(0., -20., 0.))
        write_volume(render_mr(p, kind, s), data/f'{kind}_{s}.nii.gz')
        write_volume(p.labels.with_data(((p.labels.data >= 1) & (p.labels.data <= 17)).astype(np.uint8), 'label'), data/f'mask_{s}.nii.gz')
        rows.append(f'{kind}_{s}.nii.gz,mask_{s}.nii.gz,p{s},{kind.upper()}')
    (data/'index.csv').write_text('\n'.join(rows) + '\n')
    begin(until=None, size='tiny', out=str(tmp_path/'o'), data=str(data), contrasts='T2 T1', folds=2, steps=2, workers=1)
    record = json.loads((tmp_path/'o'/'metrics.json').read_text())
    assert set(record['rows']) == {'T2_to_T1', 'T1_to_T2'} and "-p contrasts 'T2 T1'" in record['command']
    for way, target in (('T2_to_T1', ('t1_0', 't1_1')), ('T1_to_T2', ('t2_2', 't2_3'))):
        m, scans = {n: v['dice'] for n, v in record['rows'][way].items()}, record['scans'][way]
        assert set(m) == {'source', 'translated', 'curves', 'adapted', 'both', 'supervised'} and all(set(f) == set(target) for f in scans.values())
        assert all(abs(m[n] - np.mean(list(f.values()))) < 1e-9 and 0 <= min(f.values()) for n, f in scans.items())
        assert abs(record['gap_closed'][way] - (m['adapted'] - m['source'])/(m['supervised'] - m['source'])) < 1e-6
    for way in ('T2_to_T1', 'T1_to_T2'): assert len(list((tmp_path/'o'/way).glob('fold*/translator'))) == 2 and len(list((tmp_path/'o'/way).glob('source'))) == 1
