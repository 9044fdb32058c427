"What notebook 40 says of a reader's folders before anything is trained."
import notebooks
import numpy as np
import pytest
from xmodseg.files import write_volume
from xmodseg.volume import Volume

def scan(path, seed, shape=(40, 48, 48), label=None, spacing=(2., 2., 2.)):
    "A block of bone in soft tissue in air."
    v = np.random.default_rng(seed).normal(40, 20, shape).astype(np.float32)
    v[:4] = v[:, :4] = -1000
    inside = np.zeros(shape, np.uint8); inside[12:28, 16:32, shape[2]//3:2*shape[2]//3] = 1
    v[inside > 0] += 600
    write_volume(Volume(v, np.diag([*spacing, 1.])), path)
    if label: write_volume(Volume(inside, np.diag([*spacing, 1.]), 'label'), label)

@pytest.fixture
def data(tmp_path):
    for k in range(2): scan(tmp_path/'d'/'cbct'/'imagesTr'/f'a{k}.nii.gz', k)
    for k in range(3): scan(tmp_path/'d'/'ct'/'imagesTr'/f'q{k}.nii.gz', 10 + k, label=tmp_path/'d'/'ct'/'labelsTr'/f'q{k}.nii.gz')
    return tmp_path/'d'

def refuses(*words, data, out, **given): notebooks.refused('40_train_sadn', 'some =', words, data=str(data), out=str(out), **given)

def test_what_is_left_out_is_said(data, tmp_path, capsys):
    c = notebooks.begin('40_train_sadn', 'some =', size='tiny', data=str(data), out=str(tmp_path/'o'))['cohort']
    said = capsys.readouterr().out
    assert len(c.test_h) and 'there is no row supervised' in said and 'nothing is scored on CBCT' in said

def test_one_labelled_CT_is_refused_before_training(data, tmp_path):
    for f in [*data.glob('ct/*/q1*'), *data.glob('ct/*/q2*')]: f.unlink()
    refuses('no labelled CT is left to score', 'two or more', 'label one more', data=data, out=tmp_path/'o')

def test_thin_scans_are_refused_before_training(data, tmp_path):
    scan(data/'cbct'/'imagesTr'/'a2.nii.gz', 5, (40, 48, 20))
    refuses('slices are smaller than the net allows', '20x48 px in train_l', 'at least 32x32', data=data, out=tmp_path/'o')
