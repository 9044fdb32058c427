"Generated films, a reader's folder, films of real CTs: who is in them, what is refused, which way each option pulls. Numbers in names are rows of the fault table."
import os, warnings
from pathlib import Path
import numpy as np
import pytest, torch
from xmodseg import films
from xmodseg.core import XModSegError
from xmodseg.drr import _channels
from xmodseg.files import write_volume
from xmodseg.films import CONSOLES, FILMS, ORGANS, consolidated, continued, ct_films, film_folder, letterbox, phantom_film, phantom_films, polarity, prepared_film, warped
from xmodseg.folders import film_cases, film_ending, read_film
from xmodseg.metrics import dice
from xmodseg.phantom import LABELS, above_dome, patient, render_ct
from xmodseg.volume import Volume

from PIL import Image
WORLD = dict(shape=(46, 36, 54), spacing=8., side=32)
GROUPS = ('train_drr', 'train_xray', 'test_drr', 'test_xray')

def refuses(*words, call):
    with pytest.raises(XModSegError) as e, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)

@pytest.fixture(scope='module')
def tiny():
    "A smaller world, so that tests take seconds."
    was = FILMS['tiny']
    FILMS['tiny'] = WORLD | dict(train_drr=(2, 2), train_xray=(2, 1), test_drr=(1, 1), test_xray=(1, 1))
    yield
    FILMS['tiny'] = was

@pytest.fixture(scope='module')
def drr(): return phantom_film(5, False, 4, world=WORLD)
@pytest.fixture(scope='module')
def grainy(drr):
    "Films whose air is not plain."
    x = np.clip(drr['x'] + np.random.default_rng(0).uniform(0, .1, drr['x'].shape), -1, 1).astype(np.float32)
    return dict(x=x, y=drr['y'])
@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

# ---- generated patients

def test_FILMS_E1_the_seed_is_the_film(drr):
    again = phantom_film(5, False, 4, world=WORLD)
    assert (again['x'] == drr['x']).all() and (again['y'] == drr['y']).all()
    assert drr['x'].shape == (4, 32, 32) and drr['y'].shape == (4, 4, 32, 32) and drr['y'].dtype == np.uint8
    assert np.abs(drr['x']).max() <= 1 and all((drr['x'][i] != drr['x'][0]).any() for i in (1, 2, 3))
    assert (phantom_film(6, False, 1, world=WORLD)['x'][0] != drr['x'][0]).any()

def test_FILMS_E1_organs_lie_where_they_belong(drr):
    row, col = [{o: float((y.sum(a)*np.arange(32)).sum()/y.sum()) for o, y in zip(ORGANS, drr['y'].sum(0))} for a in (1, 0)]
    assert list(ORGANS) == ['bone', 'heart', 'liver', 'lung']
    assert row['lung'] < row['liver'] - 3 and row['heart'] < row['liver'] and col['liver'] < col['heart'] - 1   # the liver is low, and on the patient's right: left in the picture
    assert (drr['y'].sum(1) > 1).any() and all(y.any() for y in drr['y'][:, 1])

def test_FILMS_E1_bone_is_bright_in_both_worlds(drr):
    t = phantom_film(5, True, 2, world=WORLD)
    for p in (drr, t):
        assert p['x'][:, 8:20, 15:17].mean() > p['x'][:, 8:20, 8:12].mean() and p['x'][:, 28:, 14:18].mean() > p['x'][:, :, :1].mean()

def test_FILMS_E1_a_console_changes_grey_and_no_mask():
    t = {c: phantom_film(5, True, 1, c, WORLD) for c in CONSOLES}
    assert all((t[c]['y'] == t['mild']['y']).all() for c in CONSOLES)
    assert np.median(t['hard']['x']) > np.median(t['paper']['x']) > np.median(t['mild']['x'])
    refuses('no such choice', call=lambda: phantom_film(5, True, console='none', world=WORLD))

def test_FILMS_E1_four_groups_of_different_people(tiny, cache):
    c = phantom_films('tiny', cache=cache, workers=1)
    assert [len(c[g]) for g in GROUPS] == [4, 2, 1, 1] and c.organs == tuple(ORGANS)
    people = [set(c[g].patient) for g in GROUPS]
    assert len(set.union(*people)) == sum(map(len, people))
    other = phantom_films('tiny', 1, cache=cache, workers=1)
    assert not set.union(*people) & set.union(*(set(other[g].patient) for g in GROUPS))
    assert c.train_drr.y[0].shape == (4, 32, 32) and c.train_drr.spacing == (10.5, 10.5) and c.train_xray.unlabelled().y is None
    refuses('no such fold', call=lambda: phantom_films('tiny', -1, cache=cache))
    refuses('no such size', call=lambda: phantom_films('huge', cache=cache))

def test_FILMS_E1_kept_films_are_found_and_broken_ones_made_again(tiny, tmp_path, monkeypatch):
    first = phantom_films('tiny', cache=tmp_path, workers=1)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6 and all(f.suffix == '.npz' for f in files)
    files[0].write_bytes(files[0].read_bytes()[:200])
    with pytest.warns(UserWarning, match='made again'): second = phantom_films('tiny', cache=tmp_path, workers=1)
    assert [first[g].fingerprint() for g in GROUPS] == [second[g].fingerprint() for g in GROUPS]
    monkeypatch.setattr(films, 'phantom_film', None)                  # nothing is made any more ...
    phantom = type('f', (), dict(__name__='phantom_film', __call__=lambda *a: 1/0))()
    monkeypatch.setattr(films, 'phantom_film', phantom)
    assert phantom_films('tiny', cache=tmp_path, workers=1).test_xray.fingerprint() == first.test_xray.fingerprint()
    monkeypatch.setattr(films, '_MAKERS', ('volume',))                # ... but for other code the kept films do not fit
    with pytest.raises(ZeroDivisionError): phantom_films('tiny', cache=tmp_path, workers=1)

def test_FILMS_E1_the_cache_knows_every_module_on_the_way():
    import ast
    root, seen, todo = Path(films.__file__).parent, set(), ['drr', 'phantom', 'films']
    skip = {'core', 'spines', 'cohort', 'unpaired', 'column', 'view', 'metrics'}   # they carry films, they do not make them
    while todo:
        m = todo.pop()
        if m in seen or m in skip: continue
        seen.add(m)
        for n in ast.walk(ast.parse((root/f'{m}.py').read_text())):
            if isinstance(n, ast.ImportFrom) and n.module and (n.level == 1 or n.module.startswith('xmodseg.')): todo.append(n.module.split('.')[-1])
    assert seen == set(films._MAKERS)

# ---- a folder of films

def test_FILMS_E2_letterbox_by_rows():
    x = np.zeros((60, 50)); x[7:55, 3:50] = np.random.default_rng(0).uniform(.1, 1, (48, 47))
    assert letterbox(x) == letterbox(1 - x) == letterbox(1000*x + 5) == (7, 5, 3, 0)
    x[2, 20] = 1
    assert letterbox(x)[0] == 7
    x[2, 20:24] = 1
    assert letterbox(x)[0] == 2 and letterbox(np.random.default_rng(1).uniform(0, 1, (20, 20))) == (0, 0, 0, 0)

@pytest.mark.parametrize('marker', [8000, 65535])
def test_FILMS_E2_a_burnt_in_marker_is_no_range(marker, tmp_path):
    r, c = np.indices((256, 256))
    x = 200 + 700*np.exp(-((r - 128)**2 + (c - 128)**2)/120**2)                                     # darker towards the rim, nowhere plain
    assert letterbox(x) == (0, 0, 0, 0)
    x[4:16, 4:24] = marker                                                                          # 240 px of 65536
    assert letterbox(x) == (0, 0, 0, 0) and letterbox(np.pad(x, ((9, 0), (0, 5)), constant_values=100)) == (9, 0, 0, 5)
    Image.fromarray(x.astype(np.uint16)).save(tmp_path/'m.png')
    y, shape, cut, _ = prepared_film(tmp_path/'m.png', 64)
    assert cut == (0, 0, 0, 0) and y[32, 32] > .9

def test_FILMS_E2_nothing_but_border_is_refused_by_name(tmp_path):
    Image.fromarray(np.pad(np.full((1, 1), 65535, np.uint16), 40)).save(tmp_path/'dot.png')
    for borders in ('cut', 'refuse'): refuses('dot.png', call=lambda: prepared_film(tmp_path/'dot.png', 32, borders=borders))
    refuses('nothing but border', 'dot.png', call=lambda: film_folder(tmp_path, 32))

def test_FILMS_E3_sign_of_the_strongest_correlation(drr):
    mean = drr['x'].mean(0)
    for x in drr['x']:
        assert polarity(x, mean) > .4 and abs(polarity(-x, mean) + polarity(x, mean)) < 1e-5
    t = phantom_film(77, True, 1, world=WORLD)['x'][0]
    assert polarity(t, mean) > .3 and polarity(np.roll(t, 3, 0), mean) > .3 and polarity(-np.roll(t, 3, 1), mean) < -.3
    assert abs(polarity(3*mean + 7, mean) - 1) < 1e-5 and polarity(np.ones((30, 30)), mean) == 0

def save(folder, name, x, mask=None, dtype=np.uint8):
    for part, v, kind in (('images', (x + 1)/2*np.iinfo(dtype).max, dtype), ('masks', mask, np.uint8)):
        (folder/part).mkdir(parents=True, exist_ok=True)
        if v is not None: Image.fromarray(np.round(v).astype(kind)).save(folder/part/f'{name}.png')

def quiet(*a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return film_folder(*a, **kw)

def stretched(x):
    lo, hi = np.percentile(x, (.5, 99.5))
    return np.clip((x - lo)/(hi - lo), 0, 1)*2 - 1

def test_FILMS_E2_sixteen_bits_and_borders_and_masks(tmp_path, grainy):
    x, y = grainy['x'], grainy['y'][:, 3]
    save(tmp_path, 'a_1', np.pad(x[0], ((8, 8), (0, 0)), constant_values=-1), np.pad(y[0], ((8, 8), (0, 0))))
    save(tmp_path, 'b', x[1], dtype=np.uint16)
    with pytest.warns(UserWarning, match='a plain border of'): f = film_folder(tmp_path, 32)
    assert f.films.patient == ['a_1', 'b'] and f.films.y is None and len(f.scored) == 1 and len(f.said) == 1
    assert np.abs(f.films.x[1] - stretched(x[1])).max() < 1e-3        # a wrapped 16-bit film would be stripes
    assert np.abs(f.films.x[0] - stretched(x[0])).max() < .03 and (f.scored.y[0][0] == y[0]).all()
    assert quiet(tmp_path, 32, borders='keep').films.x[0][0].max() == -1
    refuses('letterbox', 'a_1', call=lambda: film_folder(tmp_path, 32, borders='refuse'))
    assert quiet(tmp_path, 20).films.x[0].shape == (20, 20)

def test_FILMS_E3_94_a_negative_is_refused_or_turned_when_asked(tmp_path, grainy):
    drr = grainy
    save(tmp_path, 'right', drr['x'][0]); save(tmp_path, 'wrong', -drr['x'][1])
    mean = drr['x'].mean(0)
    refuses('inverted', 'wrong', call=lambda: film_folder(tmp_path, 32, reference=mean))
    fixed, kept, unasked = quiet(tmp_path, 32, reference=mean, inverted='fix'), quiet(tmp_path, 32, reference=mean, inverted='keep'), quiet(tmp_path, 32)
    assert (fixed.films.x[1] == -kept.films.x[1]).all() and (kept.films.x[1] == unasked.films.x[1]).all() and (fixed.films.x[0] == kept.films.x[0]).all()
    assert len(fixed.said) == len(kept.said) == 1 and 'negative' in kept.said[0] and not unasked.said
    assert polarity(fixed.films.x[1], mean) > 0

def test_FILMS_E3_a_weak_correlation_decides_nothing(tmp_path, drr):
    Image.fromarray((np.kron(np.indices((24, 24)).sum(0) % 2, np.ones((2, 2)))*255).astype(np.uint8)).save(tmp_path/'chess.png')
    mean, found = drr['x'].mean(0), {}
    for inverted in ('refuse', 'fix', 'keep'):
        found[inverted], _, _, said = prepared_film(tmp_path/'chess.png', 48, reference=mean, inverted=inverted)
        assert len(said) == 1 and said[0].startswith('polarity unsure (correlation ') and said[0].endswith('): left as it is')
    assert (found['refuse'] == found['keep']).all() and (found['fix'] == found['keep']).all() and -.2 < polarity(found['keep'], mean) < .2
    shadow = np.kron(mean, np.ones((3, 3)))                                                          # (96,96), as the board below
    faint = lambda w: np.kron(np.indices((24, 24)).sum(0) % 2, np.ones((4, 4)))*2 - 1 - w*shadow
    for w, sure in ((.1, False), (2., True)):
        v = faint(w); Image.fromarray(((v - v.min())/np.ptp(v)*65535).astype(np.uint16)).save(tmp_path/'faint.png')
        if sure: refuses('the film is inverted', 'faint.png', call=lambda: prepared_film(tmp_path/'faint.png', 96, reference=mean))
        else: assert 'unsure' in prepared_film(tmp_path/'faint.png', 96, reference=mean)[3][0]

def test_an_empty_mask_is_a_mask_in_every_format(tmp_path, grainy):
    import SimpleITK as sitk, nibabel
    (tmp_path/'masks').mkdir()
    for n, x in zip('abc', grainy['x']): (tmp_path/'images').mkdir(exist_ok=True); Image.fromarray(np.round((x + 1)*30000).astype(np.uint16)).save(tmp_path/'images'/f'{n}.png')
    none = np.zeros((32, 32), np.uint8)
    nibabel.save(nibabel.Nifti1Image(none[..., None], np.eye(4)), tmp_path/'masks'/'a.nii.gz'); sitk.WriteImage(sitk.GetImageFromArray(none[None]), str(tmp_path/'masks'/'b.dcm')); Image.fromarray(none).save(tmp_path/'masks'/'c.png')
    f = quiet(tmp_path, 32)
    assert len(f.scored) == 3 and not np.any(f.scored.y)
    y = grainy['y'][0, 3]
    nibabel.save(nibabel.Nifti1Image(y[::-1, ::-1].T[..., None].copy(), np.eye(4)), tmp_path/'masks'/'a.nii.gz'); sitk.WriteImage(sitk.GetImageFromArray(y[None]), str(tmp_path/'masks'/'b.dcm'))
    f = quiet(tmp_path, 32)
    assert y.any() and all((m[0] == y).all() for m in f.scored.y[:2])

def test_a_film_or_smooth_edges_in_place_of_a_mask_are_refused(tmp_path, grainy):
    x, y = grainy['x'][0], grainy['y'][0, 3]
    save(tmp_path, 'a', x, (x + 1)*127)                                                             # the film itself
    for organs in (None, dict(lung=(255,))): refuses('too many values for a mask', 'at most 31', 'a.png', call=lambda: film_folder(tmp_path, 32, organs))
    big = Image.fromarray(y*255).resize((96, 96), Image.Resampling.NEAREST)
    for how, n in ((Image.Resampling.NEAREST, 2), (Image.Resampling.BICUBIC, 33)):
        (small := big.resize((41, 41), how)).save(tmp_path/'masks'/'a.png')
        Image.fromarray(np.round((x + 1)*127).astype(np.uint8)).resize((41, 41)).save(tmp_path/'images'/'a.png')
        assert len(np.unique(small)) >= n
        if n == 2: assert np.mean(quiet(tmp_path, 32).scored.y[0][0] != y) < .05
        else: refuses('too many values for a mask', 'smooth edges', call=lambda: film_folder(tmp_path, 32))

@pytest.mark.parametrize('values', (31, 32))
def test_a_mask_may_hold_31_organs(tmp_path, grainy, values):
    mask = np.zeros((32, 32)); mask.flat[100:100 + values] = 1 + np.arange(values)
    save(tmp_path, 'a', grainy['x'][0], mask)
    if values == 31: assert quiet(tmp_path, 32).scored.y[0].sum() == 31
    else: refuses('too many values', 'found 32 besides 0', call=lambda: film_folder(tmp_path, 32))

def test_a_lossy_mask_is_refused_whatever_its_name(tmp_path, grainy):
    save(tmp_path, 'a', grainy['x'][0])
    (tmp_path/'masks').mkdir(exist_ok=True)
    mask = Image.fromarray(grainy['y'][0, 3])
    mask.save(tmp_path/'masks'/'a.jpg')
    refuses('a lossy mask', 'a.jpg', 'PNG', call=lambda: film_folder(tmp_path, 32))
    (tmp_path/'masks'/'a.jpg').rename(tmp_path/'masks'/'a.png')
    refuses('a lossy mask', 'a.png', call=lambda: film_folder(tmp_path, 32))

def test_a_filter_that_nobody_applies_is_refused(tmp_path, grainy):
    for n, x in zip('ab', grainy['x']): save(tmp_path, n, x, grainy['y'][0, 3])
    refuses('only an index.csv can be filtered', 'view', call=lambda: film_folder(tmp_path, 32, view='PA'))
    refuses('only an index.csv can be filtered', 'label', call=lambda: film_cases(tmp_path, label='lung_v7'))
    assert len(quiet(tmp_path, 32, label='label').films) == 2
    (tmp_path/'index.csv').write_text('image,label,view\nimages/a.png,masks/a.png,PA\nimages/b.png,,AP\n')
    f = quiet(tmp_path, 32, view='PA')
    assert f.films.patient == ['a'] and len(f.scored) == 1 and len(quiet(tmp_path, 32).films) == 2
    refuses('index.csv lacks a column', 'lung_v7', call=lambda: film_folder(tmp_path, 32, label='lung_v7'))
    (tmp_path/'index.csv').write_text('image\nimages/a.png\n')
    assert quiet(tmp_path, 32).scored is None                                                        # nobody asked for masks
    refuses('index.csv lacks a column', 'view', call=lambda: film_folder(tmp_path, 32, view='PA'))

def test_FILMS_E2_92_colour_and_other_formats(tmp_path, drr):
    import SimpleITK as sitk, nibabel
    grey = np.round((drr['x'][0] + 1)*30000).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(grey[None]), str(tmp_path/'a.dcm'))
    (tmp_path/'b.dcm').write_bytes((tmp_path/'a.dcm').read_bytes().replace(b'MONOCHROME2', b'MONOCHROME1'))
    nibabel.save(nibabel.Nifti1Image(grey[::-1, ::-1].T[..., None].astype(np.int32), np.eye(4)), tmp_path/'c.nii.gz')
    Image.fromarray(np.stack([grey >> 8, grey >> 9, grey >> 8], -1).astype(np.uint8)).save(tmp_path/'d.png')
    assert (read_film(tmp_path/'a.dcm') == grey).all() and (read_film(tmp_path/'b.dcm') == 65535. - grey).all() and (read_film(tmp_path/'c.nii.gz') == grey).all()
    refuses('not a grey picture', 'd.png', call=lambda: film_folder(tmp_path, 32))
    f = quiet(tmp_path, 32, colour='convert')
    assert f.films.patient == ['a', 'b', 'c', 'd'] and (f.films.x[0] == f.films.x[2]).all() and np.abs(f.films.x[0] + f.films.x[1]).mean() < .1 and f.scored is None
    assert np.corrcoef(f.films.x[3].ravel(), f.films.x[0].ravel())[0, 1] > .99
    assert [film_ending(n) for n in ('x.JPG', 'y.nii.gz', 'z.txt')] == ['.jpg', '.nii.gz', '']

def test_unfit_films_are_refused(tmp_path, drr):
    import nibabel
    refuses('no films', call=lambda: film_folder(tmp_path))
    save(tmp_path, 'a', drr['x'][0], drr['y'][0, 3]*5)
    refuses('unexpected label values', '5', call=lambda: film_folder(tmp_path, 32, dict(lung=(1, 2))))
    assert quiet(tmp_path, 32, dict(lung=(5,), other=())).scored.y[0].shape == (2, 32, 32)
    for kw in (dict(borders='trim'), dict(inverted='yes'), dict(colour='any')): refuses('no such choice', call=lambda: film_folder(tmp_path, 32, **kw))
    save(tmp_path, 'b', drr['x'][1], drr['y'][1, 3][:20])
    refuses('differ in size', call=lambda: film_folder(tmp_path, 32))
    (tmp_path/'masks'/'b.png').rename(tmp_path/'masks'/'c.png')
    refuses('masks without a film', 'c', 'move them out of masks/', call=lambda: film_folder(tmp_path, 32))
    (tmp_path/'masks'/'c.png').unlink()
    (tmp_path/'images'/'b.jpg').write_bytes(b'x')
    refuses('two files for one film', call=lambda: film_folder(tmp_path, 32))
    for name, v, word in (('flat.png', None, 'empty film'), ('nan.nii', np.full((9, 9), np.nan), 'no numbers'), ('deep.nii', np.random.rand(9, 9, 3), 'one plane')):
        if v is None: Image.fromarray(np.full((9, 9), 3, np.uint8)).save(tmp_path/name)
        else: nibabel.save(nibabel.Nifti1Image(v.astype(np.float32), np.eye(4)), tmp_path/name)
        refuses(word, name, call=lambda: read_film(tmp_path/name))
    for name, raw, words in (('half.png', (tmp_path/'flat.png').read_bytes()[:50], 'not a whole'), ('half.dcm', b'DICM' + b'\0'*200, 'not a whole'), ('half.nii', b'\0'*90, 'truncated file')):
        (tmp_path/name).write_bytes(raw)
        refuses(words, name, call=lambda: read_film(tmp_path/name))
    refuses('no film', call=lambda: read_film(tmp_path/'absent.png'))

# ---- films of CTs

def chest(seed):
    "A scan that ends under the lungs; lungs 1 and 2, bone 3."
    p = patient(seed, shape=(46, 36, 40), spacing=8., centre=(0, 20, 225))
    y = sum(v*np.isin(p.labels.data, k) for v, k in ((1, [LABELS['lung_r']]), (2, [LABELS['lung_l']]), (3, ORGANS['bone'])))
    return render_ct(p), p.labels.with_data(y, 'label')

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ct')
    for k in (3, 4):
        for part, v in zip(('imagesTr', 'labelsTr'), chest(k)): write_volume(v, folder/part/f'c{k}.nii.gz')
    return folder

def test_FILMS_E4_the_patient_stays_where_he_was():
    ct, y = chest(3)
    a, b = continued(ct, y, 100., 20.)
    assert a.shape == (46, 36, 40 + 13 + 3) and (a.data[:, :, 13:53] == ct.data).all() and (b.data[:, :, 13:53] == y.data).all()
    assert np.allclose(a.affine @ [1, 2, 13, 1], ct.affine @ [1, 2, 0, 1]) and not b.data[:, :, :13].any() and not b.data[:, :, 53:].any()
    body = ct.data[:, :, 0] > -300
    assert ((a.data[:, :, 0] > -300) >= body).all() and (a.data[:, :, 0] < -300)[body].sum() == 0
    wall = np.abs(np.arange(46) - np.nonzero((a.data[:, :, 0] > -300).any(1))[0].mean())*8 > 53
    assert (a.data[wall][:, :, 0] <= 150).all() and (ct.data[wall][:, :, 0] > 150).any()
    same = continued(ct, y, 0.)
    assert (same[0].data == ct.data).all() and (same[1].data == y.data).all()
    refuses('can only grow', call=lambda: continued(ct, y, -1.))

@pytest.mark.parametrize('axis, mm', [(0, 90.), (1, -1.), (2, 90.)])
def test_FILMS_E4_20_labels_that_lie_elsewhere_are_refused(axis, mm, tmp_path):
    ct, y = chest(3)
    aside = np.eye(4); aside[axis, 3] = mm
    moved = Volume(y.data, aside @ y.affine, 'label')
    refuses('lie on different grids', f'corners {abs(mm):.1f} mm apart', 'labels.like(ct)', call=lambda: continued(ct, moved, 10.))
    refuses('lie on different grids', 'shapes', call=lambda: continued(ct, y.crop((0, 0, 0), (46, 36, 39)), 10.))
    write_volume(ct, tmp_path/'imagesTr'/'c.nii.gz'); write_volume(moved, tmp_path/'labelsTr'/'c.nii.gz')
    refuses('lie on different grids', 'c: ', call=lambda: ct_films(tmp_path, 1, 32, spacing=8., cache=tmp_path/'cache', workers=1))

def test_FILMS_E4_labels_of_another_spacing_in_the_same_place_are_taken(tmp_path):
    ct, y = chest(3)
    for k, v in enumerate((y, y.resample(4.), Volume(y.data[::-1].copy(), y.affine @ [[-1, 0, 0, 45], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 'label'))):
        write_volume(ct, tmp_path/str(k)/'imagesTr'/'c.nii.gz'); write_volume(v, tmp_path/str(k)/'labelsTr'/'c.nii.gz')
    one, fine, mirrored = [ct_films(tmp_path/str(k), 1, 32, spacing=8., cache=tmp_path/'cache', workers=1) for k in range(3)]
    assert np.array_equal(one.y, mirrored.y) and np.array_equal(one.x, mirrored.x) and np.mean(np.not_equal(one.y, fine.y)) < .1 and np.any(one.y)

def test_FILMS_E4_a_scan_without_a_body_is_continued_too():
    a, _ = continued(Volume(np.full((9, 9, 4), -1000.), np.eye(4)), Volume(np.zeros((9, 9, 4), int), np.eye(4), 'label'), 3., 2.)
    assert a.shape == (9, 9, 9) and (a.data == -1000).all()

def test_FILMS_E5_image_and_label_move_together():
    ct, y = chest(3)
    v = _channels(ct, y, dict(lung=(1, 2)))
    torch.testing.assert_close(warped(v, ct.spacing, 0., np.random.default_rng(0)), v, atol=1e-4, rtol=0)
    w = warped(v, ct.spacing, 12., np.random.default_rng(1))
    assert (w - v).abs().mean() > 1e-3 and .6 < float(w[1].sum()/v[1].sum()) < 1.6
    assert float(((w[0] < .01) & (w[1] > .95)).sum()/(w[1] > .95).sum()) > .9
    moved = warped(v, ct.spacing, 12., np.random.default_rng(1))
    assert (moved == w).all()

def test_FILMS_E5_displacements_are_in_mm():
    x = torch.arange(40.)[None, :, None, None].expand(3, 40, 40, 40)*2         # mm along the first axis
    d = torch.cat([warped(x, (2., 2., 2.), 3., np.random.default_rng(k))[0, 10:30, 10:30, 10:30].flatten() - x[0, 10:30, 10:30, 10:30].flatten() for k in range(12)])
    assert 1.2 < float(d.std()) < 3.

def test_FILMS_E5_water_in_the_lung_and_nowhere_else():
    ct, y = chest(3)
    v = _channels(ct, y, dict(lung=(1, 2)))
    s = consolidated(v, np.random.default_rng(2))
    assert (s[1:] == v[1:]).all() and torch.allclose(s[0][v[1] == 0], v[0][v[1] == 0]) and s[0].max() <= v[0].max() + 1e-6
    assert float(s[0][v[1] > 0].mean()) > 1.2*float(v[0][v[1] > 0].mean())

def test_FILMS_E1_films_of_real_patients(real, cache):
    call = lambda **kw: ct_films(real, 3, 48, spacing=8., cache=cache, workers=1, **kw)
    plain = call(look='crude')
    assert plain.patient == ['c3']*3 + ['c4']*3 and plain.y[0].shape == (1, 48, 48) and plain.x[0].shape == (48, 48)
    assert call(look='crude').fingerprint() == plain.fingerprint() != call(look='crude', seed=1).fingerprint()
    mean = np.mean(plain.x, 0)
    assert all(polarity(x, mean) > 0 for x in call().x)
    left = np.mean([y[0, :, :24].sum() for y in plain.y])/np.mean([y[0].sum() for y in plain.y])
    assert .35 < left < .65                                                                         # framed by the lungs
    assert np.mean([y[0].any(0).mean() for y in plain.y]) > .55
    share = lambda **kw: float(np.mean(call(look='crude', **kw).y))
    assert share(t_mm=60.) < .95*share() and share(organs=dict(lung=(1, 2), bone=(3,))) > 0
    assert share(dome=True) < .97*share()
    a, b = call(look='crude', dome=True), call(look='crude', dome=True, opacity=1.)
    assert all((p == q).all() for p, q in zip(a.y, b.y)) and all((p == q).all() for p, q in zip(a.x, call(look='crude').x))   # water takes nothing off, the dome moves no grey
    assert all((p <= q).all() for p, q in zip(a.y, call(look='crude').y))                                                    # it only takes away
    two = call(look='crude', organs=dict(lung=(1, 2), bone=(3,)), dome=True)
    assert all((p[0] == q[0]).all() for p, q in zip(two.y, a.y)) and all((p[1] == q[1]).all() for p, q in zip(two.y, call(look='crude', organs=dict(lung=(1, 2), bone=(3,))).y))   # of the lung alone
    low = lambda s: float(np.mean([x[-3:].max() for x in s.x]))
    assert low(call(look='crude', continue_below=150.)) > low(plain) + .1
    dark = lambda s: float(np.mean([x[y[0] > 0].mean() for x, y in zip(s.x, s.y)]))
    assert dark(call(look='crude', opacity=1.)) > dark(plain) + .02
    refuses('no such choice', call=lambda: call(look='nice'))

def test_95_an_organ_that_no_ct_has_is_refused_before_anything_is_rendered(real, cache, monkeypatch):
    monkeypatch.setattr(films, '_ct_patient', None)
    with pytest.raises(XModSegError) as e: ct_films(real, 1, 32, dict(lung=(1, 2), heart=(9,)), spacing=8., cache=cache, workers=1)
    assert 'heart' in str(e.value) and e.value.needed == dict(heart=(9,)) and e.value.found == 'values [0, 1, 2, 3]'
    refuses('an organ that no CT has', 'lung', call=lambda: ct_films(real, 1, 32, dict(lung=(9,)), spacing=8., cache=cache, workers=1))

def test_95_an_organ_that_one_ct_lacks_is_no_fault_but_for_the_lung(real, tmp_path):
    import shutil
    shutil.copytree(real, tmp_path/'ct')
    y = chest(4)[1]
    call = lambda o: ct_films(tmp_path/'ct', 1, 32, o, spacing=8., look='crude', cache=tmp_path/'cache', workers=1)
    write_volume(y.with_data(np.where(y.data == 3, 0, y.data), 'label'), tmp_path/'ct'/'labelsTr'/'c4.nii.gz', overwrite=True)
    s = call(dict(lung=(1, 2), bone=(3,)))
    assert s.y[0][1].any() and not s.y[1][1].any()
    refuses('nothing to frame', 'c4', call=lambda: call(dict(bone=(3,))))

def test_FILMS_E5_an_option_changes_one_thing(real, cache):
    call = lambda n=3, **kw: ct_films(real, n, 48, spacing=8., cache=cache, workers=1, **kw)
    plain, wet, warm = call(), call(opacity=1.), call(warp_mm=1e-9)
    assert all((a == b).all() for a, b in zip(plain.y, wet.y)) and all((a != b).any() for a, b in zip(plain.x, wet.x))      # water moves nobody
    assert all(np.abs(a.astype(int) - b).mean() < .03 for a, b in zip(plain.y, warm.y))
    assert np.mean([np.abs(a - b).mean() for a, b in zip(plain.x, warm.x)]) < .05 < np.mean([np.abs(a - b).mean() for a, b in zip(plain.x, call(seed=1).x)])   # one machine, one pose
    assert (call(2).x[0] == plain.x[0]).all() and (call(2).x[1] == plain.x[1]).all()                                          # nor do further films
    some, all_ = call(opacity=.5), wet
    hit = [(a != b).any() for a, b in zip(plain.x, some.x)]
    assert 0 < sum(hit) < 6 and all((a == b).all() for a, b, h in zip(some.x, all_.x, hit) if h)                               # the same patches, only in fewer films

# ---- PHANTOM.E1

def boxes(): # two lungs over a flat dome at 20, their columns from outer wall to middle, and a wedge behind
    x, y, z = np.indices((60, 40, 50))
    side = np.where(x < 30, x - 3, 56 - x)
    inside = (side >= 0) & (side < 24)
    return side, y, z, inside & (z >= 20) & (z < 46), inside & (z >= 8) & (z < 20) & (y < 8)

def test_PHANTOM_E1_the_wedge_goes_and_nothing_else():
    side, y, z, lung, wedge = boxes()
    assert np.array_equal(above_dome(lung), lung) and np.array_equal(above_dome(lung | wedge), lung)
    assert np.array_equal(above_dome((lung | wedge)[::-1]), lung[::-1])                          # either side
    assert not np.array_equal(above_dome((lung | wedge)[:, :, ::-1]), lung[:, :, ::-1])          # up is up

def test_PHANTOM_E1_lung_behind_the_heart_stays():
    side, y, z, lung, wedge = boxes()
    heart = (side > 14) & (y > 15) & (z < 34)
    assert np.array_equal(above_dome((lung & ~heart) | wedge), lung & ~heart)

def test_PHANTOM_E1_the_dome_falls_towards_the_ribs_and_the_two_sides_differ():
    side, y, z, lung, wedge = boxes()
    inside, left = (side >= 0) & (side < 24) & (z < 46), np.indices(side.shape)[0] < 30
    fallen = inside & (z >= 20 - 2*np.clip(6 - side, 0, None))
    assert dice(above_dome(fallen | wedge), fallen) > .99 > .97 > dice(fallen | wedge, fallen)
    uneven = inside & (z >= np.where(left, 20, 26))
    got = above_dome(uneven | (wedge & left))
    assert dice(got, uneven) > .985 and dice(got[10:24], uneven[10:24]) == 1 == dice(got[36:50], uneven[36:50])

def test_PHANTOM_E1_slanting_fronts_do_not_vote():
    side, y, z, lung, wedge = boxes()
    slanted = lung & (z >= 20 + 8*np.clip(y - 36, 0, None))                                       # the front rises, columns there are short
    assert dice(above_dome(slanted | wedge), slanted) > .97                                      # not cut at its highest base
    assert np.array_equal(above_dome(np.zeros((9, 9, 9), bool)), np.zeros((9, 9, 9), bool)) and np.array_equal(above_dome(lung[:4]), lung[:4])

def test_another_file_under_an_old_name_is_rendered_again(real, tmp_path):
    import shutil
    shutil.copytree(real, tmp_path/'ct')
    call = lambda: ct_films(tmp_path/'ct', 1, 32, spacing=8., look='crude', cache=tmp_path/'cache', workers=1)
    first = call()
    shutil.copy(tmp_path/'ct'/'imagesTr'/'c4.nii.gz', tmp_path/'ct'/'imagesTr'/'c3.nii.gz'); shutil.copy(tmp_path/'ct'/'labelsTr'/'c4.nii.gz', tmp_path/'ct'/'labelsTr'/'c3.nii.gz')
    assert call().fingerprint() != first.fingerprint()

def test_unlabelled_scans_are_refused(real, tmp_path):
    import shutil
    shutil.copytree(real/'imagesTr', tmp_path/'imagesTr')
    refuses('no scan has a label', call=lambda: ct_films(tmp_path))

# ---- real data, where there is any

def data(name):
    root = Path(os.environ.get('XMODSEG_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')/name/'open'
    if not root.is_dir(): pytest.skip('no real images here')
    return root

def test_real_films_are_read_and_none_is_a_negative(tmp_path):
    source = ct_films(data('ct_thorax'), 4, 64, spacing=5., look='crude', t_mm=30., cache=tmp_path, workers=1)
    f = quiet(data('cxr_covid'), 64, dict(lung=(1, 2)), label='lung_v7', reference=np.mean(source.x, 0))
    assert len(f.films) == 112 and len(f.scored) == 100 and len(set(source.patient)) == 3
    assert all(.05 < y.mean() < .75 for y in f.scored.y) and np.mean([x[y[0] > 0].mean() < x[y[0] == 0].mean() for x, y in zip(f.scored.x, f.scored.y)]) > .8
    worst = max(polarity(-x, np.mean(source.x, 0)) for x in f.films.x)
    assert worst < -.2                                                                              # and every negative would be noticed

def test_39_a_film_saved_again_under_another_patient_is_named(tmp_path):
    r = np.random.default_rng(0); a, c = (Image.fromarray(np.kron(r.integers(20, 230, (8, 8)), np.ones((12, 12))).astype(np.uint8)) for _ in 'ac')
    a.save(tmp_path/'p1.png'); a.save(tmp_path/'q7.jpg', quality=90); c.save(tmp_path/'z3.png')
    with pytest.warns(UserWarning, match='q7 looks like p1, but their patients are p1 and q7'): f = film_folder(tmp_path, 32)
    assert f.films.patient == ['p1', 'q7', 'z3'] and len(f.said) == 1

@pytest.mark.parametrize('wrong', [dict(inverted='Fix'), dict(borders='none'), dict(colour='grey')])
def test_an_option_that_is_none_is_refused_for_one_film_too(tmp_path, wrong):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(tmp_path/'a.png')
    with pytest.raises(XModSegError): prepared_film(tmp_path/'a.png', 32, **wrong)

def test_a_body_grows_only_along_an_axis_that_runs_up():
    a = np.diag([2., 2., -2., 1.]); ct = Volume(np.zeros((8, 8, 8), np.float32), a); labels = Volume(np.zeros((8, 8, 8), np.uint8), a, 'label')
    with pytest.raises(XModSegError, match='RAI'): continued(ct, labels, below=10)
