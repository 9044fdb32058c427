"Files, folders and labels that must be refused or survived: never a silent wrong result. Numbers in names are rows of the fault table."
import csv, errno, gzip, json, os, struct, warnings
from pathlib import Path
import nibabel as nib, numpy as np, SimpleITK as sitk
import PIL.Image
import pytest
import torch
from xmodseg.core import XModSegError
from xmodseg import files
from xmodseg.files import read_volume, write_volume
from xmodseg.folders import cases, check, read_picture, refuse_faults, shared_patients
from xmodseg.volume import Volume, map_slices

rng = np.random.default_rng(0)
A = np.array([[-2., 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 3, -9], [0, 0, 0, 1]])
DATA = np.rint(rng.normal(0, 300, (12, 10, 8))).astype(np.int16)


def refuses(*words, call, file=None):
    "The refusal names the file, what was found and what is needed."
    with pytest.raises(XModSegError) as e: call()
    assert all(w.lower() in str(e.value).lower() for w in words), str(e.value)
    assert e.value.found is not None and (e.value.needed is not None or e.value.fix)
    if file is not None: assert str(file) in str(e.value)
    return e.value


@pytest.fixture
def nii(tmp_path):
    "A good gzipped NIfTI, without a reader's help."
    p = tmp_path/'scan.nii.gz'
    nib.save(nib.Nifti1Image(DATA, A), p)
    return p


def header(path, edit):
    "Rewrite a NIfTI file with an edited raw header."
    raw = bytearray(gzip.decompress(path.read_bytes()))
    edit(raw)
    path.write_bytes(gzip.compress(bytes(raw)))


def image(tmp_path, name, array=DATA, compress=False):
    x = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    x.SetSpacing((2, 1.5, 3)); x.SetOrigin((-30, -20, -9))
    sitk.WriteImage(x, str(tmp_path/name), compress)
    return tmp_path/name


def series(folder, positions=range(6), uid='1.2.3', turn='1\\0\\0\\0\\1\\0', shift=0., rgb=False):
    "A DICOM series with slices 3 mm apart."
    folder.mkdir(exist_ok=True)
    w = sitk.ImageFileWriter(); w.KeepOriginalImageUIDOn()
    for k in positions:
        a = rng.integers(0, 100, (10, 12)).astype(np.int16)
        x = sitk.GetImageFromArray(np.stack([a.astype(np.uint8)]*3, -1), isVector=True) if rgb else sitk.GetImageFromArray(a)
        x.SetSpacing((2, 1.5))
        tags = {'0020|000e': uid, '0020|000d': '1.9', '0008|0060': 'CT', '0020|0032': f'-30\\{-20 + shift*k}\\{-9 + 3*k}', '0020|0037': turn, '0020|0013': str(int(10*k)), '0008|0018': f'{uid}.{int(10*k) + 1}'}
        for t, v in tags.items(): x.SetMetaData(t, v)
        w.SetFileName(str(folder/f'{uid}_{int(10*k):03d}.dcm')); w.Execute(x)
    return folder


# ---------------------------------------------------------------- files

def test_00_a_good_file_is_read(nii):
    v = read_volume(nii)
    assert np.array_equal(v.data, DATA) and np.allclose(v.affine, A) and v.name == 'scan' and v.axes == 'LPS'


@pytest.mark.parametrize('part', [.1, .5, .95])
def test_01_truncated_gz(nii, part):
    nii.write_bytes(nii.read_bytes()[:int(part*nii.stat().st_size)])
    e = refuses('truncated', 'bytes', call=lambda: read_volume(nii), file=nii)
    if part > .1: assert '1,920' in str(e)


@pytest.mark.parametrize('cut', [1, 600, 1900])
def test_02_truncated_nii(nii, cut):
    p = nii.with_suffix('')
    p.write_bytes(gzip.decompress(nii.read_bytes())[:-cut])
    refuses('truncated', f'{1920 - cut:,}', '1,920', call=lambda: read_volume(p), file=p)


def test_02_truncated_inside_the_header(nii):
    p = nii.with_suffix('')
    p.write_bytes(gzip.decompress(nii.read_bytes())[:200])
    refuses('truncated', '200 bytes', call=lambda: read_volume(p), file=p)


@pytest.mark.parametrize('where', [.3, .5, .8])
def test_03_flipped_byte_is_corrupt_not_unknown(nii, where):
    b = bytearray(nii.read_bytes()); b[int(where*len(b))] ^= 0xff
    nii.write_bytes(b)
    e = refuses(call=lambda: read_volume(nii), file=nii)
    assert 'corrupt' in str(e) or 'truncated' in str(e)


@pytest.mark.parametrize('back', [6, 2])
def test_04_bad_checksum_or_length(nii, back):
    b = bytearray(nii.read_bytes()); b[-back] ^= 1
    nii.write_bytes(b)
    refuses('corrupt', 'incorrect', call=lambda: read_volume(nii), file=nii)


@pytest.mark.parametrize('name', ['a.nii.gz', 'a.nii', 'a.nrrd', 'a.mha'])
def test_05_zero_bytes(tmp_path, name):
    (tmp_path/name).touch()
    refuses('empty file', '0 bytes', call=lambda: read_volume(tmp_path/name), file=tmp_path/name)


@pytest.mark.parametrize('name', ['a.nii.gz', 'a.nii', 'a.nrrd', 'a.mha'])
def test_06_web_page(tmp_path, name):
    p = tmp_path/name
    p.write_text('<html><body>404 Not Found' + ' '*500 + '</body></html>')
    e = refuses('<html', call=lambda: read_volume(p), file=p)
    if name == 'a.nii.gz': assert 'not gzip' in str(e)


def test_07_plain_nifti_named_gz_and_reverse(nii, tmp_path):
    raw = nii.read_bytes()
    (tmp_path/'b.nii').write_bytes(raw); nii.write_bytes(gzip.decompress(raw))
    for p, word in ((nii, 'not gzipped'), (tmp_path/'b.nii', 'gzipped')):
        with pytest.warns(UserWarning, match=word): assert np.array_equal(read_volume(p).data, DATA)


def test_08_missing_file_and_broken_link(tmp_path):
    refuses('no such file', call=lambda: read_volume(tmp_path/'gone.nii'), file=tmp_path/'gone.nii')
    (tmp_path/'link.nii').symlink_to(tmp_path/'gone.nii')
    refuses('link to nowhere', call=lambda: read_volume(tmp_path/'link.nii'))


def test_08_unknown_ending(tmp_path):
    (tmp_path/'a.xyz').write_text('?')
    refuses('no reader', '.nii.gz', call=lambda: read_volume(tmp_path/'a.xyz'))


@pytest.mark.parametrize('name', ['räume mit ümlaut/größe 1.nii.gz', '患者 7/画像.nii.gz', 'räume/größe 2.nrrd'])
def test_10_unicode_and_spaces(tmp_path, nii, name):
    p = tmp_path/name
    p.parent.mkdir()
    if name.endswith('gz'): p.write_bytes(nii.read_bytes())
    else: image(p.parent, p.name)
    assert np.array_equal(read_volume(p).data, DATA)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_11_12_nonfinite_voxels(tmp_path, bad):
    x = DATA.astype(np.float32); x[1, 2, 3] = x[4, 5, 6] = bad
    nib.save(nib.Nifti1Image(x, A), tmp_path/'a.nii.gz')
    refuses('2 nan or inf', '960', call=lambda: read_volume(tmp_path/'a.nii.gz'), file=tmp_path/'a.nii.gz')
    v = read_volume(tmp_path/'a.nii.gz', nonfinite=-1000)
    assert v.data[1, 2, 3] == -1000 and v.data[0, 0, 0] == DATA[0, 0, 0]
    refuses('filling', call=lambda: read_volume(tmp_path/'a.nii.gz', nonfinite=np.nan))
    refuses('no numbers', call=lambda: write_volume(Volume(x, A), tmp_path/'b.nii'))
    assert not (tmp_path/'b.nii').exists()


def test_11_nonfinite_in_nrrd(tmp_path):
    x = DATA.astype(np.float32); x[0, 0, 0] = np.nan
    refuses('1 nan or inf', call=lambda: read_volume(image(tmp_path, 'a.nrrd', x)))


def test_15_slope_and_offset_round_trip(tmp_path):
    im = nib.Nifti1Image(DATA, A); im.header.set_slope_inter(2, -1024)
    raw = bytearray(im.to_bytes()); struct.pack_into('<ff', raw, 112, 2., -1024.)
    (tmp_path/'a.nii').write_bytes(raw)
    v = read_volume(tmp_path/'a.nii')
    assert np.allclose(v.data, DATA*2. - 1024)
    assert np.abs(read_volume(write_volume(v, tmp_path/'b.nii.gz')).data - v.data).max() <= .5


@pytest.mark.parametrize('values', [DATA*100., DATA*1e4 + .25, DATA/7.])
def test_15_no_overflow_on_write(tmp_path, values):
    back = read_volume(write_volume(Volume(values, A), tmp_path/'a.nii.gz')).data
    assert np.array_equal(back, values.astype(np.float32))


def test_16_rgb(tmp_path):
    rgb = np.zeros((12, 10, 8), dtype=[('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
    nib.save(nib.Nifti1Image(rgb, A), tmp_path/'a.nii.gz')
    refuses('3 channels', 'grey', call=lambda: read_volume(tmp_path/'a.nii.gz'), file=tmp_path/'a.nii.gz')
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 10, 12, 3), np.uint8), isVector=True), str(tmp_path/'a.mha'))
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); refuses('3 channels', call=lambda: read_volume(tmp_path/'a.mha'))


def test_16_complex(tmp_path):
    nib.save(nib.Nifti1Image(DATA.astype(np.complex64), A), tmp_path/'a.nii.gz')
    refuses('complex', call=lambda: read_volume(tmp_path/'a.nii.gz'))


@pytest.mark.parametrize('shape', [(12, 10, 8, 2), (12, 10, 1), (12, 10), (1, 10, 8), (12, 10, 8, 1, 3)])
def test_17_not_three_axes(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), A), tmp_path/'a.nii.gz')
    refuses('not a volume', call=lambda: read_volume(tmp_path/'a.nii.gz'), file=tmp_path/'a.nii.gz')


def test_17_a_fourth_axis_of_one_is_dropped(tmp_path):
    nib.save(nib.Nifti1Image(DATA[..., None], A), tmp_path/'a.nii.gz')
    assert np.array_equal(read_volume(tmp_path/'a.nii.gz').data, DATA)


def test_17_4d_mha(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 8, 10, 12), np.int16), isVector=False), str(tmp_path/'a.mha'))
    refuses('not a volume', call=lambda: read_volume(tmp_path/'a.mha'))


# ---------------------------------------------------------------- NRRD and MetaImage

FORMATS = [(n, c) for n in ('a.nrrd', 'a.nhdr', 'a.mha', 'a.mhd') for c in (False, True)]

@pytest.mark.parametrize('name,compress', FORMATS)
def test_00_itk_formats_lps_to_ras(tmp_path, name, compress):
    v = read_volume(image(tmp_path, name, compress=compress))
    assert np.array_equal(v.data, DATA) and np.allclose(v.affine, A)


@pytest.mark.parametrize('name,compress', FORMATS)
@pytest.mark.parametrize('cut', [1, 300])
def test_01_truncated_where_simpleitk_is_silent(tmp_path, name, compress, cut):
    p = image(tmp_path, name, compress=compress)
    data = next((q for q in sorted(tmp_path.iterdir()) if 'raw' in q.name), p)
    data.write_bytes(data.read_bytes()[:-cut])
    e = refuses(call=lambda: read_volume(p), file=tmp_path)
    if not compress: assert f'{1920 - cut:,}' in str(e) and '1,920' in str(e)


@pytest.mark.parametrize('name', ['a.nrrd', 'a.mha'])
def test_03_corrupt_compressed_stream(tmp_path, name):
    p = image(tmp_path, name, compress=True)
    b = bytearray(p.read_bytes()); b[-200] ^= 0xff; p.write_bytes(b)
    refuses(call=lambda: read_volume(p), file=p)


@pytest.mark.parametrize('name', ['a.nhdr', 'a.mhd'])
def test_08_data_file_missing(tmp_path, name):
    p = image(tmp_path, name)
    for q in tmp_path.glob('*.raw'): q.unlink()
    refuses('no such file', '.raw', call=lambda: read_volume(p))


def test_26_no_orientation_is_said(tmp_path):
    p = image(tmp_path, 'a.mha')
    p.write_bytes(b'\n'.join(l for l in p.read_bytes().split(b'\n', 11) if not l.startswith(b'TransformMatrix')))
    with pytest.warns(UserWarning, match='left and right are unknown'): read_volume(p)


@pytest.mark.parametrize('size', [b'2 0 3', b'2 -1 3', b'nan 1 1'])
def test_29_mha_spacing_is_no_length(tmp_path, size):
    p = image(tmp_path, 'a.mha')
    p.write_bytes(p.read_bytes().replace(b'ElementSpacing = 2 1.5 3', b'ElementSpacing = ' + size))
    refuses('spacing', call=lambda: read_volume(p), file=p)


@pytest.mark.parametrize('v', [b'(0,0,0)', b'(nan,0,0)'])
def test_29_nrrd_spacing_is_no_length(tmp_path, v):
    p = image(tmp_path, 'a.nrrd')
    p.write_bytes(p.read_bytes().replace(b'(2,0,0)', v))
    refuses(call=lambda: read_volume(p), file=p)


def test_27_nrrd_sheared(tmp_path):
    p = image(tmp_path, 'a.nrrd')
    p.write_bytes(p.read_bytes().replace(b'(0,1.5,0)', b'(0.6,1.5,0)'))
    refuses(call=lambda: read_volume(p), file=p)


@pytest.mark.parametrize('line', [b'CompressedDataSize = 9999\n', b'CompressedDataSize = 100\n', b''])
def test_01_mha_whose_compressed_size_is_wrong(tmp_path, line):
    "The reader inflates garbage here without a word."
    p = image(tmp_path, 'a.mha', compress=True)
    import re
    p.write_bytes(re.sub(rb'CompressedDataSize = \d+\n', line, p.read_bytes()))
    refuses('as announced', call=lambda: read_volume(p), file=p)


@pytest.mark.parametrize('name,compress', [('a.nii', False), ('a.nii.gz', True), ('a.nrrd', False), ('a.nrrd', True), ('a.mha', False), ('a.mha', True)])
def test_random_damage_is_refused_in_our_words_or_read(tmp_path, nii, name, compress):
    "Three random bytes of the first 400, 60 times: no other exception, and a compressed stream never reads wrong."
    p, r = tmp_path/name, np.random.default_rng(5)
    if '.nii' in name: p.write_bytes(nii.read_bytes() if compress else gzip.decompress(nii.read_bytes()))
    else: image(tmp_path, name, compress=compress)
    good, refused = p.read_bytes(), 0
    for _ in range(60):
        b = bytearray(good)
        for _ in range(3): b[r.integers(0, min(len(b), 400))] = r.integers(0, 256)
        p.write_bytes(b)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: v = read_volume(p)
            except XModSegError as e: refused += 1; assert e.found is not None
            else: assert not compress or v.data.shape != DATA.shape or np.array_equal(v.data, DATA) or b[:300] != good[:300]
    assert refused > 2


# ---------------------------------------------------------------- DICOM

def test_00_dicom_series(tmp_path):
    v = read_volume(series(tmp_path/'d'))
    assert v.shape == (12, 10, 6) and np.allclose(v.affine, A) and v.name == 'd'


def test_18_missing_slice(tmp_path):
    refuses('a slice is missing', '6.00 mm', '3.00 mm', call=lambda: read_volume(series(tmp_path/'d', (0, 1, 2, 4, 5, 6))), file=tmp_path/'d')


def test_91_two_series(tmp_path):
    series(tmp_path/'d'); series(tmp_path/'d', range(4), '1.2.4')
    refuses('several', '1.2.3: 6 slices', '1.2.4: 4 slices', call=lambda: read_volume(tmp_path/'d'))


def test_91_varying_spacing(tmp_path):
    refuses('spacing varies', '3.90 mm', call=lambda: read_volume(series(tmp_path/'d', (0, 1, 2, 3.3, 4.3, 5.3))))


def test_91_two_slices_in_one_place(tmp_path):
    series(tmp_path/'d'); (tmp_path/'e').mkdir()
    x = sitk.ReadImage(str(tmp_path/'d'/'1.2.3_020.dcm'))[:, :, 0]
    for t, v in {'0020|000e': '1.2.3', '0020|000d': '1.9', '0008|0060': 'CT', '0020|0032': '-30\\-20\\-3', '0020|0037': '1\\0\\0\\0\\1\\0', '0020|0013': '99', '0008|0018': '1.2.3.99'}.items(): x.SetMetaData(t, v)
    w = sitk.ImageFileWriter(); w.KeepOriginalImageUIDOn(); w.SetFileName(str(tmp_path/'d'/'twice.dcm')); w.Execute(x)
    refuses('same place', call=lambda: read_volume(tmp_path/'d'))


def test_27_dicom_gantry_tilt(tmp_path):
    refuses('sheared', 'gantry', call=lambda: read_volume(series(tmp_path/'d', shift=.6)))


@pytest.mark.parametrize('which', [0, 2, -1])
@pytest.mark.parametrize('cut', [10, 200])
def test_01_truncated_dicom(tmp_path, which, cut):
    f = sorted(series(tmp_path/'d').iterdir())[which]
    f.write_bytes(f.read_bytes()[:-cut])
    refuses(call=lambda: read_volume(tmp_path/'d'), file=tmp_path/'d')


def test_05_empty_folder_and_folder_without_dicom(tmp_path):
    (tmp_path/'d').mkdir()
    refuses('an empty folder', call=lambda: read_volume(tmp_path/'d'), file=tmp_path/'d')
    (tmp_path/'d'/'notes.txt').write_text('no image')
    refuses('notes.txt', call=lambda: read_volume(tmp_path/'d'))


def test_17_one_dicom_slice(tmp_path):
    refuses('not a volume', call=lambda: read_volume(series(tmp_path/'d', [0])))


def test_16_rgb_dicom(tmp_path):
    refuses('3 channels', call=lambda: read_volume(series(tmp_path/'d', rgb=True)))


# ---------------------------------------------------------------- geometry in headers

def test_22_noise_in_the_affine(tmp_path):
    nib.save(nib.Nifti1Image(DATA, A), tmp_path/'a.nii.gz')
    noisy = A.copy(); noisy[:3] += 1e-6*rng.normal(size=(3, 4))
    nib.save(nib.Nifti1Image((DATA > 0).astype(np.uint8), noisy), tmp_path/'b.nii.gz')
    from xmodseg.volume import grid_difference
    assert grid_difference(read_volume(tmp_path/'a.nii.gz'), read_volume(tmp_path/'b.nii.gz', 'label')) == ''


def sform(raw, a):
    struct.pack_into('<hh', raw, 252, 0, 2); struct.pack_into('<12f', raw, 280, *np.asarray(a)[:3].ravel())


@pytest.mark.parametrize('a,word', [(A*[0, 1, 1, 1], 'singular'), (A + np.eye(4)*[np.nan, 0, 0, 0], 'nan'), (A @ (np.eye(4) + .3*np.eye(4, k=1)*[1, 1, 0, 0]), 'sheared')])
def test_23_24_27_bad_affines(nii, a, word):
    header(nii, lambda raw: sform(raw, a))
    refuses(word, call=lambda: read_volume(nii), file=nii)


def test_25_sform_and_qform_disagree(nii):
    def edit(raw): sform(raw, A @ np.diag([-1., 1, 1, 1])); struct.pack_into('<h', raw, 252, 1)
    header(nii, edit)
    with pytest.warns(UserWarning, match='sform and qform disagree.*sform is used'): v = read_volume(nii)
    assert v.axes == 'RPS'


def test_26_no_codes(nii):
    header(nii, lambda raw: struct.pack_into('<hh', raw, 252, 0, 0))
    with pytest.warns(UserWarning, match='left and right are unknown'): assert read_volume(nii).axes == 'LAS'


def test_28_nearly_orthonormal_is_accepted(nii):
    a = A.copy(); a[:3, :3] += 1e-4*rng.normal(size=(3, 3))
    header(nii, lambda raw: sform(raw, a))
    assert np.allclose(read_volume(nii).affine, a, atol=1e-5)


@pytest.mark.parametrize('n,value', [(1, 0.), (2, -1.5), (3, np.nan), (3, np.inf)])
def test_29_pixdim_is_no_length(nii, n, value):
    header(nii, lambda raw: struct.pack_into('<f', raw, 76 + 4*n, value))
    refuses('spacing', 'pixdim', call=lambda: read_volume(nii), file=nii)


def test_29_pixdim_and_affine_disagree(nii):
    header(nii, lambda raw: (sform(raw, A), struct.pack_into('<f', raw, 80, 5.)))
    with pytest.warns(UserWarning, match='the affine is used'): assert np.allclose(read_volume(nii).spacing, (2, 1.5, 3))


def test_bad_quaternion_with_a_good_sform(nii):
    header(nii, lambda raw: (sform(raw, A), struct.pack_into('<h', raw, 252, 1), struct.pack_into('<3f', raw, 256, 5., 5., 5.)))
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); assert np.allclose(read_volume(nii).affine, A)


def test_30_lps_or_ras_input_same_answer():
    net = lambda x: torch.tanh(x + torch.roll(x, 3, -1)*torch.linspace(0, 1, x.shape[-1]))   # knows left from right
    ras = Volume(rng.normal(0, 500, (40, 36, 34)), np.diag([2., 1.5, 1, 1]))
    flip = np.diag([-1., -1, 1, 1]); flip[:2, 3] = 39, 35
    lps = Volume(ras.data[::-1, ::-1], ras.affine @ flip)
    for axis in range(3):
        a, b = (map_slices(v, net, axis=axis, spacing=1.2, min_size=16) for v in (ras, lps))
        assert np.abs(a.data - b.data[::-1, ::-1]).max() < 1e-2 and b.axes == 'LPS'


@pytest.mark.parametrize('a', [A, A[:, [2, 0, 1, 3]], np.diag([.7, .7, 5, 1.])])
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_31_output_on_the_input_grid(tmp_path, a, ending):
    nib.save(nib.Nifti1Image(rng.integers(-1000, 900, (40, 36, 34)).astype(np.int16), a), tmp_path/f'in{ending}')
    v = read_volume(tmp_path/f'in{ending}')
    y = map_slices(v, lambda x: (x > 0).float(), kind='label', axis=2, spacing=3, min_size=8)
    one, two = nib.load(tmp_path/f'in{ending}'), nib.load(write_volume(y, tmp_path/f'out{ending}'))
    assert np.array_equal(one.affine, two.affine) and one.shape == two.shape and np.allclose(one.header.get_zooms(), two.header.get_zooms())
    assert two.get_data_dtype() == np.uint8 and two.header['sform_code'] > 0 and two.header['qform_code'] > 0
    with warnings.catch_warnings(): warnings.simplefilter('error'); read_volume(tmp_path/f'out{ending}', 'label')
    assert np.allclose(nib.load(tmp_path/f'out{ending}').get_qform(), a, atol=1e-4)


def test_32_labels_cannot_be_blurred():
    y = Volume(rng.integers(0, 5, (12, 10, 8)), A, 'label').resample((1.1, .7, 2.3))
    assert y.data.dtype.kind in 'iu' and set(np.unique(y.data)) <= set(range(5))


def test_33_34_sizes():
    v = Volume(rng.normal(0, 300, (20, 50, 45)).clip(-1000), np.eye(4))
    refuses('50', '20', '32', call=lambda: map_slices(v, lambda x: x, axis=2))
    assert np.abs(map_slices(v, lambda x: x, axis=0, divisor=64).data - v.data).max() < 1e-3


# ---------------------------------------------------------------- writing

def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    v, p = Volume(DATA, A), tmp_path/'a.nii.gz'
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(files.os, 'fsync', full)
    refuses('cannot write', 'no space', call=lambda: write_volume(v, p), file=p)
    assert list(tmp_path.iterdir()) == []


def test_written_whole_or_not_at_all_on_interrupt(tmp_path, monkeypatch):
    p = tmp_path/'a.nii'
    p.write_bytes(b'before')
    def stop(*a): raise KeyboardInterrupt
    monkeypatch.setattr(files.os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt): write_volume(Volume(DATA, A), p, overwrite=True)
    assert [q.name for q in tmp_path.iterdir()] == ['a.nii'] and p.read_bytes() == b'before'


def test_73_an_original_is_never_changed(nii):
    before = nii.read_bytes()
    v = read_volume(nii)
    refuses('there already', 'overwrite', call=lambda: write_volume(v, nii), file=nii)
    v.data[:] = 0
    assert nii.read_bytes() == before
    write_volume(v, nii, overwrite=True)
    assert read_volume(nii).data.max() == 0


def test_73_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('in the way')
    refuses('cannot write', call=lambda: write_volume(Volume(DATA, A), tmp_path/'file'/'sub'/'a.nii.gz'), file=tmp_path/'file')
    if os.geteuid():   # the superuser may write anywhere
        (tmp_path/'locked').mkdir(mode=0o500)
        refuses('cannot write', 'denied', call=lambda: write_volume(Volume(DATA, A), tmp_path/'locked'/'a.nii.gz'))


def test_writing_makes_folders_and_only_nifti(tmp_path):
    assert write_volume(Volume(DATA, A), tmp_path/'x'/'y'/'a.nii.gz').exists()
    refuses('.nii', call=lambda: write_volume(Volume(DATA, A), tmp_path/'a.nrrd'))


# ---------------------------------------------------------------- pictures

@pytest.fixture
def pil(): return PIL.Image

def test_92_sixteen_bits(tmp_path, pil):
    a = rng.integers(0, 65535, (9, 7)).astype(np.uint16)
    pil.fromarray(a).save(tmp_path/'a.png')
    assert np.array_equal(read_picture(tmp_path/'a.png'), a)


def test_92_palette_alpha_colour(tmp_path, pil):
    m = rng.integers(0, 4, (9, 7)).astype(np.uint8)
    p = pil.fromarray(m).convert('P')
    p.putdata(m.ravel().tolist()); p.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]); p.save(tmp_path/'p.png')
    assert np.array_equal(read_picture(tmp_path/'p.png', 'label'), m)
    refuses('not a grey picture', call=lambda: read_picture(tmp_path/'p.png'))
    grey = np.repeat(m[..., None]*50, 3, -1)
    pil.fromarray(grey).save(tmp_path/'g.png')
    assert np.array_equal(read_picture(tmp_path/'g.png'), m*50.)
    pil.fromarray(np.dstack([grey, np.full((9, 7, 1), 255, np.uint8)])).save(tmp_path/'a.png')
    assert np.array_equal(read_picture(tmp_path/'a.png'), m*50.)
    pil.fromarray(np.dstack([grey, m])).save(tmp_path/'t.png')
    refuses('transparent', call=lambda: read_picture(tmp_path/'t.png'), file=tmp_path/'t.png')
    pil.fromarray(rng.integers(0, 255, (9, 7, 3)).astype(np.uint8)).save(tmp_path/'c.png')
    refuses('3 channels', call=lambda: read_picture(tmp_path/'c.png'))


def test_92_jpeg_turned_by_exif(tmp_path, pil):
    x = pil.fromarray(np.linspace(0, 255, 64*32).reshape(64, 32).astype(np.uint8))
    e = pil.Exif(); e[0x0112] = 6
    x.save(tmp_path/'a.jpg', exif=e)
    assert read_picture(tmp_path/'a.jpg').shape == (32, 64)


def test_92_truncated_picture(tmp_path, pil):
    pil.fromarray(rng.integers(0, 255, (90, 70)).astype(np.uint8)).save(tmp_path/'a.png')
    b = (tmp_path/'a.png').read_bytes()
    for n in (len(b)//2, 30): (tmp_path/'a.png').write_bytes(b[:n]); refuses('not a whole picture', call=lambda: read_picture(tmp_path/'a.png'), file=tmp_path/'a.png')
    (tmp_path/'a.png').write_text('<html>'); refuses('not a whole picture', call=lambda: read_picture(tmp_path/'a.png'))


# ---------------------------------------------------------------- labels, folders, domains

def dataset(folder, n=3, labels=True, json_=True, ts=0, scale=300.):
    "A small data set in the nnU-Net layout; images differ, labels hold 0, 1, 2."
    for k in range(n + ts):
        s = 'Tr' if k < n else 'Ts'
        v = Volume(np.rint(rng.normal(-200, scale, (14, 12, 10))), A, name='x')
        write_volume(v, folder/f'images{s}'/f'p{k:02d}_0000.nii.gz')
        if labels and s == 'Tr': write_volume(Volume(rng.integers(0, 3, v.shape), A, 'label'), folder/f'labels{s}'/f'p{k:02d}.nii.gz')
    if json_: (folder/'dataset.json').write_text(json.dumps(dict(channel_names={'0': 'CT'}, labels=dict(background=0, liver=1, heart=2), numTraining=n, file_ending='.nii.gz')))
    return folder


def verdicts(rows): return {(r.case, r.verdict) for r in rows}
def sentence(rows, verdict): return ' | '.join(r.sentence for r in rows if r.verdict == verdict)


def test_00_nnunet_layout(tmp_path):
    c = cases(dataset(tmp_path, ts=1))
    assert [x.name for x in c] == ['p00', 'p01', 'p02'] and all(x.label.exists() for x in c)
    assert [x.name for x in cases(tmp_path, 'Ts')] == ['p03'] and cases(tmp_path, 'Ts')[0].label is None
    assert verdicts(check(tmp_path)) == {(f'p0{k}', 'pass') for k in range(3)}
    refuse_faults(check(tmp_path))


def test_00_decathlon_layout(tmp_path):
    dataset(tmp_path, json_=False)
    rows = [dict(image=f'./imagesTr/p0{k}_0000.nii.gz', label=f'./labelsTr/p0{k}.nii.gz') for k in range(2)]
    (tmp_path/'dataset.json').write_text(json.dumps(dict(training=rows, test=['./imagesTr/p02_0000.nii.gz'], labels={'0': 'background', '1': 'liver', '2': 'heart'}, patient={'p00_0000': 'anna'})))
    c = cases(tmp_path)
    assert len(c) == 2 and c[0].label.name == 'p00.nii.gz' and len(cases(tmp_path, 'Ts')) == 1 and c[0].patient == 'anna'
    assert verdicts(check(tmp_path)) == {(x.name, 'pass') for x in c}


def table(folder, rows):
    with open(folder/'index.csv', 'w', newline='') as f: w = csv.DictWriter(f, rows[0]); w.writeheader(); w.writerows(rows)


def test_00_index_csv(tmp_path):
    dataset(tmp_path, json_=False)
    table(tmp_path, [dict(case=f'c{k}', modality='CT' if k else 'MR', image=f'imagesTr/p0{k}_0000.nii.gz', label=f'labelsTr/p0{k}.nii.gz', patient=f'pat{k}') for k in range(3)])
    assert [c.name for c in cases(tmp_path, modality='CT')] == ['c1', 'c2'] and cases(tmp_path)[0].patient == 'pat0'
    refuses('lacks a column', 'contrast', call=lambda: cases(tmp_path, contrast='T1'))
    refuses('no cases', call=lambda: cases(tmp_path, modality='PET'))


def test_08_all_missing_files_are_listed(tmp_path):
    dataset(tmp_path, json_=False)
    table(tmp_path, [dict(image=f'imagesTr/x{k}.nii.gz', label='') for k in range(3)])
    refuses('3 files', 'x0.nii.gz', 'x1.nii.gz', 'x2.nii.gz', call=lambda: cases(tmp_path), file=tmp_path)


@pytest.mark.parametrize('make', [lambda f: None, lambda f: (f/'imagesTr').mkdir(), lambda f: (f/'index.csv').write_text('image,label\n')])
def test_09_no_cases(tmp_path, make):
    make(tmp_path)
    refuses(call=lambda: cases(tmp_path), file=tmp_path)
    refuses('no such folder', call=lambda: cases(tmp_path/'gone'))
    (tmp_path/'f').touch(); refuses('a file', call=lambda: cases(tmp_path/'f'))
    refuses('no such split', call=lambda: cases(tmp_path, 'train'))


def replace(folder, k, image=None, label=None):
    for what, v in (('images', image), ('labels', label)):
        if v is not None: write_volume(v, folder/f'{what}Tr'/f"p{k:02d}{'_0000' if what == 'images' else ''}.nii.gz", overwrite=True)


def noise(shape=(14, 12, 10), shift=-200.): return np.rint(rng.normal(shift, 300, shape))


def test_13_constant_image(tmp_path):
    replace(dataset(tmp_path), 1, Volume(np.zeros((14, 12, 10)), A))
    rows = check(tmp_path)
    assert ('p01', 'fail') in verdicts(rows) and 'constant' in sentence(rows, 'fail')
    refuses('p01', 'constant', call=lambda: refuse_faults(rows))


def test_14_other_unit(tmp_path):
    replace(dataset(tmp_path), 1, Volume(noise(shift=1200).clip(0), A))
    assert 'but air is about -1000' in sentence(check(tmp_path, hu=True), 'warn') and not sentence(check(tmp_path), 'warn')


@pytest.mark.parametrize('affine,shape,word', [(A, (14, 12, 9), 'shapes'), (A @ np.diag([1., 1.1, 1, 1]), (14, 12, 10), 'spacings'), (A + [[0, 0, 0, 37], [0]*4, [0]*4, [0]*4], (14, 12, 10), '37.0 mm')])
def test_19_20_21_label_on_another_grid(tmp_path, affine, shape, word):
    replace(dataset(tmp_path), 2, label=Volume(rng.integers(0, 3, shape), affine, 'label'))
    rows = check(tmp_path)
    assert verdicts(rows) == {('p00', 'pass'), ('p01', 'pass'), ('p02', 'fail')} and word in sentence(rows, 'fail')


def test_35_empty_label(tmp_path):
    replace(dataset(tmp_path), 0, label=Volume(np.zeros((14, 12, 10)), A, 'label'))
    rows = check(tmp_path)
    assert ('p00', 'warn') in verdicts(rows) and 'empty label' in sentence(rows, 'warn')
    with pytest.warns(UserWarning, match='p00: empty'): refuse_faults(rows)


def test_36_unexpected_label(tmp_path):
    y = rng.integers(0, 3, (14, 12, 10)); y[0, 0, 0] = 7
    replace(dataset(tmp_path), 0, label=Volume(y, A, 'label'))
    assert '[7]' in sentence(check(tmp_path), 'fail') and '[0, 1, 2]' in sentence(check(tmp_path), 'fail')
    assert '[2, 7]' in sentence(check(tmp_path, classes=(0, 1)), 'fail')


@pytest.mark.parametrize('values,ok', [(.9999, True), (.5, False), (255, False)])
def test_37_labels_stored_as_floats(tmp_path, values, ok):
    dataset(tmp_path)
    nib.save(nib.Nifti1Image((rng.random((14, 12, 10)) > .5).astype(np.float32)*np.float32(values), A), tmp_path/'labelsTr'/'p00.nii.gz')
    rows = check(tmp_path)
    assert (('p00', 'pass') in verdicts(rows)) == ok
    if values == 255: assert '[255]' in sentence(rows, 'fail')
    if values == .5: assert 'whole numbers' in sentence(rows, 'fail') and 'labelsTr' in sentence(rows, 'fail')


def test_38_image_and_label_swapped(tmp_path):
    dataset(tmp_path)
    a, b = tmp_path/'imagesTr'/'p01_0000.nii.gz', tmp_path/'labelsTr'/'p01.nii.gz'
    x, y = a.read_bytes(), b.read_bytes(); a.write_bytes(y); b.write_bytes(x)
    rows = check(tmp_path)
    assert ('p01', 'fail') in verdicts(rows) and 'swapped' in sentence(rows, 'fail')


def test_39_patient_in_both_splits(tmp_path):
    dataset(tmp_path, ts=2)
    (tmp_path/'imagesTs'/'p03_0000.nii.gz').rename(tmp_path/'imagesTs'/'p01_2_0000.nii.gz')
    rows = check(tmp_path)
    assert ('p01', 'fail') in verdicts(rows) and 'p01_2' in sentence(rows, 'fail')


def test_39_same_file_under_two_names(tmp_path):
    dataset(tmp_path, ts=1)
    (tmp_path/'imagesTs'/'p03_0000.nii.gz').write_bytes((tmp_path/'imagesTr'/'p02_0000.nii.gz').read_bytes())
    assert ('p02', 'fail') in verdicts(check(tmp_path))


def test_40_two_domains_that_are_one(tmp_path):
    a = dataset(tmp_path/'a')
    assert len(shared_patients(cases(a), cases(a))) == 3
    for k in range(3): (tmp_path/'b'/'imagesTr').mkdir(parents=True, exist_ok=True); (tmp_path/'b'/'imagesTr'/f'q{k}.nii.gz').write_bytes((a/'imagesTr'/f'p0{k}_0000.nii.gz').read_bytes())
    rows = check(tmp_path/'b', against=cases(a))
    assert {('q0', 'fail'), ('q1', 'fail'), ('q2', 'fail')} <= verdicts(rows)
    assert not [r for r in check(dataset(tmp_path/'c', n=2, labels=False), against=[c for c in cases(a) if c.name == 'p02']) if r.verdict == 'fail']


@pytest.mark.parametrize('text,word', [('{"training": [', 'valid JSON'), ('[1, 2]', 'a list'), ('{"training": [{"label": "x"}]}', 'without an image'), ('{"training": [{"image": 3}]}', 'without an image')])
def test_93_invalid_json(tmp_path, text, word):
    (dataset(tmp_path)/'dataset.json').write_text(text)
    refuses('dataset.json', word, call=lambda: cases(tmp_path), file=tmp_path/'dataset.json')


def test_93_json_names_absent_files(tmp_path):
    (dataset(tmp_path)/'dataset.json').write_text(json.dumps(dict(training=[dict(image=f'./imagesTr/z{k}.nii.gz', label=f'./labelsTr/z{k}.nii.gz') for k in range(2)])))
    refuses('4 files', 'z0.nii.gz', 'labelstr/z1.nii.gz', call=lambda: cases(tmp_path), file=tmp_path)


def test_93_no_json(tmp_path):
    assert len(cases(dataset(tmp_path, json_=False))) == 3 and verdicts(check(tmp_path)) == {(f'p0{k}', 'pass') for k in range(3)}


def test_93_labels_without_images_and_two_files_for_one_case(tmp_path):
    dataset(tmp_path)
    (tmp_path/'imagesTr'/'p00_0000.nii.gz').unlink()
    refuses('without an image', 'p00', call=lambda: cases(tmp_path))
    (tmp_path/'labelsTr'/'p00.nii.gz').unlink()
    image(tmp_path/'imagesTr', 'p01_0000.nrrd')
    refuses('two files', 'p01', call=lambda: cases(tmp_path))


def test_check_names_the_broken_file_and_goes_on(tmp_path):
    dataset(tmp_path)
    p = tmp_path/'imagesTr'/'p01_0000.nii.gz'
    p.write_bytes(p.read_bytes()[:500])
    rows = check(tmp_path)
    assert verdicts(rows) == {('p00', 'pass'), ('p01', 'fail'), ('p02', 'pass')} and str(p) in sentence(rows, 'fail')


def test_check_reads_folders_of_pictures(tmp_path, pil):
    for k in range(3):
        pil.fromarray(rng.integers(0, 255, (40, 30)).astype(np.uint8)).save(tmp_path/f'x{k}.png')
        pil.fromarray(rng.integers(0, 2, (40, 30 + (k == 2))).astype(np.uint8)).save(tmp_path/f'y{k}.png')
    table(tmp_path, [dict(image=f'x{k}.png', label=f'y{k}.png') for k in range(3)])
    rows = check(tmp_path, classes=(0, 1), min_size=30)
    assert verdicts(rows) == {('x0', 'pass'), ('x1', 'pass'), ('x2', 'fail')} and 'shapes' in sentence(rows, 'fail')


def test_check_slices_smaller_than_the_net(tmp_path):
    assert 'smaller than 32' in sentence(check(dataset(tmp_path), min_size=32), 'fail') and not sentence(check(tmp_path, min_size=12), 'fail')


# ---------------------------------------------------------------- real scans, where there are any

def real():
    here = os.environ.get('XMODSEG_DATA') or Path(__file__).resolve().parents[1].parent/'shared'/'data'
    return sorted(Path(here).glob('*/open')) if Path(here).is_dir() else []


@pytest.mark.skipif(not real(), reason='no real data here')
def test_real_folders_list_and_pass():
    for folder in real():
        if folder.parent.name in ('ct_thorax', 'ct_totalseg', 'spine_ctmr_tptbox'): assert {r.verdict for r in check(folder)} == {'pass'}, folder
        if folder.parent.name == 'spine_mr_vb':
            c = cases(folder, contrast='T1')
            assert len(c) > 5 and len({x.patient for x in c}) > 1


@pytest.mark.skipif(not real(), reason='no real data here')
def test_real_scan_there_and_back(tmp_path):
    found = [c for f in real() if f.parent.name == 'ct_totalseg' for c in cases(f, modality='CT')]
    if not found: pytest.skip('no real CT here')
    v = read_volume(found[0].image)
    y = map_slices(v, lambda x: x, axis=0, spacing=3.)
    assert y.shape == v.shape and np.array_equal(y.affine, v.affine) and np.abs(y.data - v.data.clip(-1000, 2000)).mean() < 30
    w = read_volume(write_volume(y, tmp_path/'y.nii.gz'))
    assert np.array_equal(w.affine, v.affine) and np.allclose(w.data, y.data)
