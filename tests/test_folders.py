"Lists of cases, tables written by hand, splits, pictures and films: what used to vanish, wrap or turn without a word."
import json, warnings
import nibabel as nib, numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
from xmodseg.core import XModSegError
from xmodseg.files import read_volume, write_volume
from xmodseg.folders import Case, cases, check, film_cases, index_rows, read_film, read_picture, refuse_faults, shared_patients, splits
from xmodseg.volume import Volume
from xmodseg.folders import _image_faults

A = np.diag([-3., -3, 3, 1])


def vol(seed=0): return Volume(np.rint(np.random.default_rng(seed).normal(-300, 300, (12, 10, 9))), A)


def refuses(*words, call):
    with pytest.raises(XModSegError) as e: call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)


@pytest.fixture
def same(tmp_path):
    "Three patients whose scans have one name."
    for k in (1, 2, 3): write_volume(vol(k), tmp_path/f'p0{k}'/'mr.nii.gz')
    return tmp_path


# ---------------------------------------------------------------- one name, two files

def test_csv_rows_of_one_name_are_refused(same):
    (same/'index.csv').write_text('image,patient\n' + ''.join(f'p0{k}/mr.nii.gz,p0{k}\n' for k in (1, 2, 3)))
    refuses('two rows of one name', 'p01/mr.nii.gz', 'p02/mr.nii.gz', 'add a column case that tells them apart', call=lambda: cases(same))
    (same/'index.csv').write_text('case,image\n' + ''.join(f'c{k},p0{k}/mr.nii.gz\n' for k in (1, 2, 3)))
    assert [(c.name, c.image.parent.name) for c in cases(same)] == [('c1', 'p01'), ('c2', 'p02'), ('c3', 'p03')]
    (same/'index.csv').write_text('case,image\na,p01/mr.nii.gz\na,p02/mr.nii.gz\nb,p03/mr.nii.gz\n')
    refuses('two rows of one name', call=lambda: cases(same))


def test_csv_rows_of_one_name_in_two_contrasts(same):
    (same/'index.csv').write_text('image,contrast\np01/mr.nii.gz,T1\np02/mr.nii.gz,T2\n')
    assert cases(same, contrast='T1')[0].image == same/'p01'/'mr.nii.gz'        # only what is asked for must differ
    refuses('two rows of one name', call=lambda: cases(same))


def test_dicom_folders_in_a_table_have_names(same):
    (same/'index.csv').write_text('image\np01\np02\n')
    assert [c.name for c in cases(same)] == ['p01', 'p02']


def test_json_rows_of_one_name_are_refused(same):
    (same/'dataset.json').write_text(json.dumps(dict(training=[dict(image=f'p0{k}/mr.nii.gz') for k in (1, 2, 3)])))
    refuses('two rows of one name', 'p01/mr.nii.gz', 'p02/mr.nii.gz', 'dataset.json', call=lambda: cases(same))


@pytest.mark.parametrize('names', [('ct_0000', 'ct_0001', 'ct_0002'), ('ct_0001',), ('ct_0001', 'ct_0002'), ('a_0000', 'a_0001', 'b_0000')])
def test_numbers_that_are_channels_or_cases(tmp_path, names):
    for k, n in enumerate(names): write_volume(vol(k), tmp_path/'imagesTr'/f'{n}.nii.gz')
    refuses('channels or cases', names[0], 'channel_names', call=lambda: cases(tmp_path))
    for key in ('channel_names', 'modality'):
        (tmp_path/'dataset.json').write_text(json.dumps({key: {'0': 'CT', '1': 'MR'}}))
        if '0000' in names[0]: assert cases(tmp_path)[0].image.name == f'{names[0]}.nii.gz'
    (tmp_path/'dataset.json').unlink()
    if 'ct_0001' in names: assert cases(tmp_path, channel=1)[0].image.name == 'ct_0001.nii.gz'


def test_numbers_that_can_only_be_channels(tmp_path):
    for n in 'ab':
        for k in (0, 1): write_volume(vol(k), tmp_path/'imagesTr'/f'{n}_{k:04d}.nii.gz')
    assert [(c.name, c.image.name) for c in cases(tmp_path, channel=1)] == [('a', 'a_0001.nii.gz'), ('b', 'b_0001.nii.gz')] and len(cases(tmp_path)) == 2
    (tmp_path/'imagesTr'/'b_0001.nii.gz').unlink()
    for n in 'ab': write_volume(Volume(np.ones((12, 10, 9)), A, 'label'), tmp_path/'labelsTr'/f'{n}.nii.gz')
    assert len(cases(tmp_path)) == 2                                             # the labels' names decide


def test_json_of_the_first_nnunet_leaves_out_the_channel(tmp_path):
    for k in (0, 1): write_volume(vol(k), tmp_path/'imagesTr'/f'p_{k:04d}.nii.gz')
    (tmp_path/'dataset.json').write_text(json.dumps(dict(training=[dict(image='./imagesTr/p.nii.gz')])))
    assert [(c.name, c.image.name) for c in cases(tmp_path)] == [('p', 'p_0000.nii.gz')] and cases(tmp_path, channel=1)[0].image.name == 'p_0001.nii.gz'
    (tmp_path/'imagesTr'/'p_0000.nii.gz').unlink()
    refuses('named but not there', 'p.nii.gz', call=lambda: cases(tmp_path))


# ---------------------------------------------------------------- tables written by hand

@pytest.mark.parametrize('head', ['image,label,patient,contrast', 'image, label, patient, contrast', 'Image,LABEL,Patient,Contrast', '"Image", "Label", "Patient", "Contrast"', '\ufeffimage ,label ,patient ,contrast '])
def test_names_of_columns(same, head):
    (same/'index.csv').write_text(f'{head}\np01/mr.nii.gz, p02/mr.nii.gz ,anna, T1 \np03/mr.nii.gz,,Zoé,T2\n', encoding='utf-8')
    assert index_rows(same/'index.csv')[0] == dict(image='p01/mr.nii.gz', label='p02/mr.nii.gz', patient='anna', contrast='T1')
    c = cases(same, contrast='T1') + cases(same, Contrast='T2', image='Image', label='Label')
    assert [(x.patient, x.label and x.label.parent.name) for x in c] == [('anna', 'p02'), ('Zoé', None)]
    refuses('lacks a column', 'needed view', call=lambda: cases(same, VIEW='PA'))
    refuses('lacks a column', 'lung', call=lambda: film_cases(same, label='Lung'))


@pytest.mark.parametrize('raw', ['image,patient\na.nii,Müller\n'.encode('cp1252'), 'image\na.nii\n'.encode('utf-16')])
def test_other_encodings(tmp_path, raw):
    (tmp_path/'index.csv').write_bytes(raw)
    for call in (index_rows, lambda p: cases(p.parent)): refuses('cannot read index.csv', "save it as 'CSV UTF-8'", call=lambda: call(tmp_path/'index.csv'))


@pytest.mark.parametrize('text', ['', 'image,label\n', '\n\n'])
def test_a_table_without_rows(tmp_path, text):
    (tmp_path/'index.csv').write_text(text)
    for call in (index_rows, lambda p: cases(p.parent)): refuses('an empty index.csv', 'no rows', call=lambda: call(tmp_path/'index.csv'))


def test_rows_too_long_and_too_short(same):
    (same/'index.csv').write_text('image,patient,contrast\np01/mr.nii.gz,anna,T1,a note, another\np02/mr.nii.gz\n')
    assert index_rows(same/'index.csv') == [dict(image='p01/mr.nii.gz', patient='anna', contrast='T1'), dict(image='p02/mr.nii.gz', patient='', contrast='')]
    assert len(cases(same, contrast='T1')) == 1


def test_json_with_a_byte_order_mark(tmp_path):
    write_volume(vol(), tmp_path/'imagesTr'/'a.nii')
    (tmp_path/'dataset.json').write_text('{"patient": {"a": "anna"}}', encoding='utf-8-sig')
    assert cases(tmp_path)[0].patient == 'anna'


# ---------------------------------------------------------------- whose, and on which side

def test_patients_are_words(tmp_path):
    for k in range(4): write_volume(vol(k), tmp_path/'imagesTr'/f'c{k}.nii.gz')
    (tmp_path/'dataset.json').write_text(json.dumps(dict(patient=dict(c0=7, c1='x', c2=0, c3=None))))
    assert [c.patient for c in cases(tmp_path)] == ['7', 'x', '0', 'c3']
    (tmp_path/'dataset.json').write_text('{"patient": ["a"]}')
    refuses('whose are the scans', 'list', call=lambda: cases(tmp_path))


def test_FOLDERS_E3_a_number_and_a_word_are_one_patient(tmp_path):
    for side, k in (('ct', 0), ('mr', 1)): write_volume(vol(k), tmp_path/side/'imagesTr'/f'{side}.nii.gz')
    (tmp_path/'ct'/'dataset.json').write_text('{"patient": {"ct": 7}}')
    (tmp_path/'mr'/'index.csv').write_text('image,patient\nimagesTr/mr.nii.gz,7\n')
    assert [(a.name, b.name) for a, b in shared_patients(cases(tmp_path/'ct'), cases(tmp_path/'mr'))] == [('ct', 'mr')]


def test_FOLDERS_E3_capitals_make_no_other_patient(tmp_path):
    for k in (0, 1): write_volume(vol(k), tmp_path/f'{k}.nii')
    a, b, c = [Case(n, n, tmp_path/f'{k}.nii') for n, k in (('P00', 0), ('p00', 1), ('p01', 1))]
    assert shared_patients([a], [b]) == [(a, b)] and shared_patients([a], [c]) == []


def test_splits_of_a_table_are_its_own(same):
    rows = 'p01/mr.nii.gz,Tr,a\np02/mr.nii.gz,Ts,b\n'
    (same/'index.csv').write_text('image,split,case\n' + rows)
    write_volume(vol(9), same/'imagesTs'/'x.nii.gz')
    assert splits(same) == ['Tr', 'Ts'] and [c.name for c in cases(same, 'Ts')] == ['b']
    (same/'index.csv').write_text('image,split,case\n' + rows.replace(',Tr', ','))
    assert splits(same) == ['Tr', 'Ts'] and [[c.name for c in cases(same, s)] for s in splits(same)] == [['a'], ['b']]
    (same/'index.csv').write_text('image,case\np01/mr.nii.gz,a\np02/mr.nii.gz,b\n')
    assert splits(same) == ['Tr'] and {r.verdict for s in ('Tr', 'Ts') for r in check(same, s)} == {'pass'}   # a folder beside the table is not in it


@pytest.mark.parametrize('word', ('train', 'val', 'ts'))
def test_a_split_that_nobody_reads_is_refused(same, word):
    (same/'index.csv').write_text(f'image,split,case\np01/mr.nii.gz,Tr,a\np02/mr.nii.gz,{word},b\n')
    with pytest.raises(XModSegError, match=f"no such split: found {word}.*'Tr' or 'Ts'.*write Tr for train"): cases(same)

def test_splits_of_folders(tmp_path):
    write_volume(vol(0), tmp_path/'imagesTr'/'a.nii')
    assert splits(tmp_path) == ['Tr']
    (tmp_path/'imagesTs').mkdir()
    assert splits(tmp_path) == ['Tr'] and {r.verdict for r in check(tmp_path)} == {'pass'}
    (tmp_path/'dataset.json').write_text('{"test": ["held/b.nii"]}')
    assert splits(tmp_path) == ['Tr']                                           # listed, never copied
    write_volume(vol(1), tmp_path/'held'/'b.nii')
    assert splits(tmp_path) == ['Tr', 'Ts']
    (tmp_path/'dataset.json').unlink(); write_volume(vol(2), tmp_path/'imagesTs'/'c.nii')
    assert splits(tmp_path) == ['Tr', 'Ts'] and [c.name for c in cases(tmp_path, 'Ts')] == ['c']


def test_check_sees_both_splits_of_a_table(same):
    (same/'index.csv').write_text('case,image,split,patient,modality\na,p01/mr.nii.gz,Tr,anna,MR\nb,p02/mr.nii.gz,Ts,Anna,CT\n')
    for s, n in (('Tr', 'b'), ('Ts', 'a')): assert [(r.verdict, 'in both splits' in r.sentence, r.sentence.endswith(n)) for r in check(same, s)] == [('fail', True, True)]
    assert [r.verdict for r in check(same, modality='MR')] == ['pass']           # no row of the other split is asked for


def test_FOLDERS_E3_one_file_twice_in_a_split(tmp_path):
    for n, k in (('a', 0), ('b', 1), ('c', 0)): write_volume(vol(k), tmp_path/'imagesTr'/f'{n}.nii.gz')
    rows = check(tmp_path)
    assert [(r.case, r.verdict) for r in rows] == [('a', 'pass'), ('b', 'pass'), ('c', 'fail')] and 'the same image as a' in rows[2].sentence
    refuses('c: the same image as a', call=lambda: refuse_faults(rows))


def test_FOLDERS_E3_headers_of_two_scans_may_be_equal(tmp_path):
    for n, k in (('a', 0), ('b', 1), ('c', 0)):
        (tmp_path/n).mkdir()
        for ending in ('mhd', 'nhdr'): sitk.WriteImage(sitk.GetImageFromArray(vol(k).data), str(tmp_path/n/f'image.{ending}'))
    for ending in ('mhd', 'nhdr'):
        a, b, c = [Case(n, n, tmp_path/n/f'image.{ending}') for n in 'abc']
        assert a.image.read_bytes() == b.image.read_bytes() and shared_patients([a], [b, c]) == [(a, c)]


# ---------------------------------------------------------------- pictures and films

GREY = np.random.default_rng(1).integers(0, 65535, (20, 15)).astype(np.uint16)


def save(path, a, **kw): PIL.Image.fromarray(a).save(path, **kw); return path


def test_a_picture_of_several_pages(tmp_path):
    p = save(tmp_path/'m.tif', GREY, save_all=True, append_images=[PIL.Image.fromarray(GREY[::-1].copy())])
    for kind in ('image', 'label'): refuses('several pages', '2 pages', 'm.tif', call=lambda: read_picture(p, kind))
    assert (read_picture(save(tmp_path/'one.tif', GREY)) == GREY).all()


def test_white_is_zero(tmp_path):
    assert (read_film(save(tmp_path/'a.tif', GREY, tiffinfo={262: 0})) == 65535. - GREY).all()
    assert (read_film(save(tmp_path/'b.tif', GREY, tiffinfo={262: 1})) == GREY).all()
    b = (GREY >> 8).astype(np.uint8)
    assert (read_film(save(tmp_path/'c.tif', b, tiffinfo={262: 0})) == b).all()  # written and read by one library, which turns both ways


def test_a_picture_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', 100)
    refuses('a picture too large', '300 pixels', call=lambda: read_picture(save(tmp_path/'a.png', GREY)))


@pytest.mark.parametrize('ending', ['tif', 'nii.gz'])
def test_37_masks_of_numbers_that_are_not_whole(tmp_path, ending):
    p, y = tmp_path/f'm.{ending}', (GREY > 30000).astype(np.float32)
    put = lambda a: save(p, a) if ending == 'tif' else nib.save(nib.Nifti1Image(a.T[::-1, ::-1][..., None], np.eye(4)), p)
    put(y*np.float32(.9999)); m = read_film(p, kind='label')
    assert (m == y).all() and m.dtype == np.int32
    put(y*np.float32(.7)); refuses('labels are whole numbers', 'm.', call=lambda: read_film(p, kind='label'))
    put(y*np.float32(300)); assert (read_film(p, kind='label') == 300*y).all()
    if ending == 'tif': put(y*np.float32(.9999)); assert np.allclose(read_picture(p, 'label').max(), .9999)


def test_37_a_float_picture_is_a_label_in_check(tmp_path):
    save(tmp_path/'x.png', GREY)
    (tmp_path/'index.csv').write_text('image,label\nx.png,y.tif\n')
    for v, verdict in ((.9999, 'pass'), (.6, 'fail')):
        save(tmp_path/'y.tif', (GREY > 30000)*np.float32(v))
        assert [r.verdict for r in check(tmp_path, classes=(0, 1))] == [verdict]


def test_03_a_damaged_film_is_never_read(tmp_path):
    p, x = tmp_path/'t.nii.gz', np.random.default_rng(0).random((24, 24, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(x, np.eye(4)), p)
    raw, good = p.read_bytes(), read_film(p)
    for k in range(60):
        b, i = bytearray(raw), int(np.random.default_rng(k).integers(20, len(raw)))
        b[i] ^= 1 << k % 8; p.write_bytes(b)
        for kind in ('image', 'label'): refuses('t.nii.gz', call=lambda: read_film(p, kind=kind))
    p.write_bytes(raw[:-200]); refuses('truncated', call=lambda: read_film(p))
    p.write_bytes(raw); assert (read_film(p) == good).all()
    (tmp_path/'t.nii').write_bytes(nib.Nifti1Image(x, np.eye(4)).to_bytes()[:-9]); refuses('not a whole', call=lambda: read_film(tmp_path/'t.nii'))


@pytest.mark.parametrize('image', [nib.Nifti1Image, nib.Nifti2Image])
def test_both_nifti_films(tmp_path, image):
    for name in ('a.nii', 'a.nii.gz'):
        nib.save(image(GREY.T[::-1, ::-1][..., None].astype(np.float32), np.eye(4)), tmp_path/name)
        assert (read_film(tmp_path/name) == GREY).all()


@pytest.mark.parametrize('shape', [(4, 3, 1), (4, 1, 3), (1, 4, 3), (4, 3)])
@pytest.mark.parametrize('across', [1, -1])
@pytest.mark.parametrize('up', [1, -1])
def test_a_film_hangs_by_the_axes_it_has(tmp_path, shape, across, up):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    long = [i for i, n in enumerate(shape) if n > 1]
    a = np.diag([-7., -7, -7, 1]); a[long[0], long[0]], a[long[1], long[1]] = across, up
    nib.save(nib.Nifti1Image(x.reshape(shape), a), tmp_path/'x.nii')
    want = x[::-across].T[::-up]                                                 # right goes to the left, up to the top
    assert (read_film(tmp_path/'x.nii') == want).all()


def test_a_film_along_the_ribs_is_not_upside_down(tmp_path):
    nib.save(nib.Nifti1Image(np.arange(12, dtype=np.float32).reshape(4, 1, 3), np.diag([-1., -1, 1, 1])), tmp_path/'c.nii')
    assert read_film(tmp_path/'c.nii').tolist() == [[2, 5, 8, 11], [1, 4, 7, 10], [0, 3, 6, 9]]

@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'SAR', 'IPL', 'SRA', 'PSR', 'ASL'])
def test_30_a_film_hangs_alike_however_its_axes_are_stored(tmp_path, axes):
    im = nib.Nifti1Image(np.arange(24, dtype=np.float32).reshape(4, 1, 6), np.diag([2., 2, 3, 1])); nib.save(im, tmp_path/'a.nii')
    o = nib.orientations
    nib.save(im.as_reoriented(o.ornt_transform(o.axcodes2ornt('RAS'), o.axcodes2ornt(tuple(axes)))), tmp_path/'b.nii')
    assert np.array_equal(read_film(tmp_path/'b.nii'), read_film(tmp_path/'a.nii'))

def test_check_opens_dicom_films(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 4000, (1, 40, 30)).astype(np.uint16)), str(tmp_path/'a.dcm'))
    (tmp_path/'index.csv').write_text('image\na.dcm\n'); assert [r.verdict for r in check(tmp_path)] == ['pass']

def test_92_luminance_and_spacing(tmp_path):
    PIL.Image.new('RGB', (4, 3), (200, 100, 50)).save(tmp_path/'a.png')
    assert np.allclose(read_picture(tmp_path/'a.png', colour='convert'), .299*200 + .587*100 + .114*50, atol=.01)
    assert 'no usual one' in ' '.join(s for _, s in _image_faults(Volume(np.random.default_rng(0).normal(0, 300, (9, 9, 9)), np.diag([.01, 1, 1, 1])), False, None))

@pytest.mark.parametrize('labels', [['background', 'bone'], {'bone': None}, {'bone': 'one'}])
def test_labels_of_dataset_json_are_numbers(tmp_path, labels):
    from xmodseg.folders import _classes
    (tmp_path/'dataset.json').write_text(json.dumps(dict(labels=labels)))
    with pytest.raises(XModSegError, match='labels without numbers'): _classes(tmp_path)

def test_a_row_of_dataset_json_names_files(tmp_path):
    (tmp_path/'dataset.json').write_text(json.dumps(dict(training=[dict(image='a.nii.gz', label=['a'])])))
    with pytest.raises(XModSegError, match='a label that names no file'): cases(tmp_path)

def test_files_that_nobody_reads_are_named(tmp_path):
    for f in ('imagesTr/a_0000.nii.gz', 'imagesTr/IM0004', 'imagesTr/b.hdr', 'imagesTr/notes.txt', 'imagesTr/.hidden', 'imagesTr/c.raw'):
        (tmp_path/f).parent.mkdir(exist_ok=True); (tmp_path/f).touch()
    with pytest.warns(UserWarning, match='2 files are not read, e.g. IM0004'): assert [c.name for c in cases(tmp_path)] == ['a']
    for f in ('films/a.png', 'films/IM0004'): (tmp_path/f).parent.mkdir(exist_ok=True); (tmp_path/f).touch()
    with pytest.warns(UserWarning, match='1 files are not read, e.g. IM0004.*.dcm'): assert [c.name for c in film_cases(tmp_path/'films')] == ['a']

def test_a_film_that_is_not_there_says_so(tmp_path):
    with pytest.raises(XModSegError, match='no film: found nope.png, which is not there'): read_film(tmp_path/'nope.png')
