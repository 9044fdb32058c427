"What notebook 44 refuses before anything is rendered: its first cells, on folders whose files hold nothing."
import notebooks
import pytest

def begin(**given): return notebooks.begin('44_train_tdgan', 't0 = time.time()', **given)   # the cell that starts to render
def refuses(*words, out, **given): notebooks.refused('44_train_tdgan', 't0 = time.time()', words, out=str(out), **given)

@pytest.fixture
def data(tmp_path):
    "Two patients with a labelled CT, three with an X-ray, two of these with a mask; no file is opened, so none holds anything."
    for f in ('ct/imagesTr/c1.nii.gz ct/imagesTr/c2.nii.gz ct/labelsTr/c1.nii.gz ct/labelsTr/c2.nii.gz xray/images/f1_1.png xray/images/f1_2.png xray/images/f2.png xray/images/f3.png '
              'xray/masks/f1_1.png xray/masks/f2.png').split():
        (tmp_path/'data'/f).parent.mkdir(parents=True, exist_ok=True); (tmp_path/'data'/f).touch()
    return tmp_path/'data'

def test_good_folders_pass_without_a_file_opened(data, tmp_path, capsys):
    names = begin(size='tiny', out=str(tmp_path/'out'), data=str(data), organs='lung:1+2 heart:3', fold=1)
    assert names['values'] == dict(lung=(1, 2), heart=(3,)) and names['ahead'] == dict(masked=2, bodies=2) and names['records'].settings['nets'] == 1
    assert 'mask' not in capsys.readouterr().out
    assert not begin(size='tiny', out=str(tmp_path/'out2'))['values']                  # phantoms have organs of their own

@pytest.mark.parametrize('organs', ['', 'lung', 'lung:', 'lung:1+', 'lung:0', 'lung:a', 'lung: 1', 'lung:1 lung:2', 'lung:1,2', ':1'])
def test_organs_that_cannot_be_read(data, tmp_path, organs): refuses('organs cannot be read', repr(organs), out=tmp_path, data=str(data), organs=organs)

@pytest.mark.parametrize('fold', [-1, 2, 5])
def test_no_more_folds_than_patients_with_masks(data, tmp_path, fold): refuses('no such fold', f'fold {fold}', '2 patients', '0 to 1', out=tmp_path, data=str(data), fold=fold)

def test_a_row_may_name_how_its_films_come(data, tmp_path):
    own = dict(size='tiny', rows='Vanilla@plain CGAN')
    assert begin(out=str(tmp_path/'a'), **own)['render'] == 'moved' and begin(out=str(tmp_path/'b'), render='plain', **own)['records'].settings['render'] == 'plain'
    n = begin(out=str(tmp_path/'c'), data=str(data), size='tiny', rows='Vanilla@crude CGAN')
    assert n['render'] == 'curves' and [n['varied'](h) for h in ('crude', 'varied', '')] == [False, True, True]
    refuses('no such rendering', 'crude', 'plain, moved, settled', out=tmp_path/'d', rows='Vanilla@crude')
    refuses('no such rendering', 'plain', 'crude, varied', out=tmp_path/'e', data=str(data), rows='Vanilla@plain')

def test_numbers_that_make_no_sense(tmp_path):
    for kw in (dict(nets=6), dict(nets=-1), dict(steps=-5)): refuses('no such number', out=tmp_path, **kw)

def test_folders_that_are_not_there(data, tmp_path):
    refuses('no folder ct', 'no such folder', out=tmp_path, data=str(tmp_path/'absent'))
    (data/'xray').rename(data/'xrays')
    refuses('no folder xray', 'ct, xrays', out=tmp_path, data=str(data))

def test_one_name_is_one_patient(data, tmp_path):
    (data/'xray'/'images'/'c2_1.png').touch()
    refuses('patients stand in both ct and xray', 'c2', 'rename', out=tmp_path, data=str(data))

def test_a_column_needs_an_index(data, tmp_path): refuses('only an index.csv', out=tmp_path, data=str(data), label='lung_v7')

def test_what_is_missing_is_said(data, tmp_path, capsys):
    for f in (data/'xray'/'masks').iterdir(): f.unlink()
    (data/'ct'/'labelsTr'/'c2.nii.gz').unlink()
    begin(size='tiny', out=str(tmp_path/'out'), data=str(data))
    said = capsys.readouterr().out
    assert 'No X-ray has a mask' in said and 'Fewer than five patients' in said
    for f in ('f1_2.png', 'f2.png', 'f3.png'): (data/'xray'/'images'/f).unlink()
    (data/'xray'/'masks'/'f1_1.png').touch()
    refuses('no X-ray is left to learn from', out=tmp_path, data=str(data))
