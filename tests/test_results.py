"From a run's metrics.json to the record, the comparison and the table."
import json, subprocess, sys
import pytest
import compare_results, merge_results, results, results_table
from tree import root
from xmodseg.run import Records

def run(seed=0, dice=.9, hd=8., row='M5', **more):
    return dict(method='SADN', size='tiny', seed=seed, steps=60, hardware='CPU', minutes=2., command=f'papermill nbs/40.ipynb OUT.ipynb -p size tiny -p seed {seed} -p out runs/{seed}',
                rows={row: {'y_l': dict(dice=dice, hd=hd), 'm_l': dict(dice=dice - .1)}}, gap_closed={row: .5 + dice/10}, **more)

@pytest.fixture
def paths(tmp_path):
    def write(*runs):
        out = []
        for r in runs:
            p = tmp_path/f'run{len(list(tmp_path.iterdir()))}'/'metrics.json'
            p.parent.mkdir(); p.write_text(json.dumps(r), encoding='utf-8'); out.append(p)
        return out
    return write

def test_merge_lists_follow_the_seeds(paths):
    m = merge_results.merge(paths(run(2, .7, 9.), run(0, .9, 8.), run(1, .8, 4.)))
    assert m['seeds'] == [0, 1, 2] and m['rows']['M5']['y_l'] == dict(dice=[.9, .8, .7], hd=[8., 4., 9.])
    assert m['gap_closed']['M5'] == pytest.approx([.59, .58, .57])
    assert set(m) == {'method', 'size', 'seeds', 'steps', 'hardware', 'minutes', 'command', 'rows', 'gap_closed'}
    assert m['minutes'] == 2. and m['command'] == 'papermill nbs/40.ipynb OUT.ipynb -p size tiny'   # without seed and folder: the same for all seeds

def test_what_records_writes_can_be_merged_and_compared(tmp_path):
    def written(seed, dice):
        r = Records(tmp_path/str(seed), seed, 'tiny', lambda row: 60, fold=seed)
        r.keep('M5', dict(y_l=dict(dice=dice)), 60.)
        return r.write(method='sadn', steps=60, command=f'papermill nbs/40.ipynb OUT.ipynb -p size tiny -p seed {seed}', gap_closed=dict(M5=dice))
    told = [written(0, .5), written(1, .75)]
    m = merge_results.merge([tmp_path/s/'metrics.json' for s in '01'])
    assert m['seeds'] == [0, 1] and m['rows']['M5']['y_l']['dice'] == [.5, .75] and m['gap_closed']['M5'] == [.5, .75] and m['minutes'] == 1.
    assert compare_results.compare(told[0], m, .2)[1] == [] and compare_results.compare(told[0], m)[1] == ['M5.y_l.dice', 'M5.gap_closed']

def test_merge_of_a_cross_validation(tmp_path, paths):
    part = lambda k, dice: {**run(0, dice), 'command': f'papermill nbs/44.ipynb OUT.ipynb -p size tiny -p seed 0{f" -p fold {k}" if k else ""} -p steps 60'}
    runs = part(2, .7), part(0, .9), part(1, .8)
    m = merge_results.merge(paths(*runs), folds=True)
    assert m['folds'] == [0, 1, 2] and m['seeds'] == [0] and m['rows']['M5']['y_l']['dice'] == [.9, .8, .7] and m['command'] == 'papermill nbs/44.ipynb OUT.ipynb -p size tiny -p steps 60'
    merge_results.write(m, tmp_path/'r'/'44_tiny.json')
    assert 'folds 0 1 2, 2 minutes a fold' in results_table.tables(tmp_path/'r')['44_tiny']
    with pytest.raises(SystemExit, match='already has'): merge_results.merge(paths(*runs))                     # without --folds they are one seed, three times
    with pytest.raises(SystemExit, match='seed differs'): merge_results.merge(paths(part(0, .9), {**part(1, .8), 'seed': 1}), folds=True)

def test_rows_of_one_seed_may_come_from_several_runs(paths):
    m = merge_results.merge(paths(run(0), run(0, row='M1'), run(1), run(1, row='M1')))
    assert list(m['rows']) == ['M5', 'M1'] and m['minutes'] == 4.

@pytest.mark.parametrize('runs, word', [
    ((run(0), run(0)), 'already has'), ((run(0), run(1, row='M1')), 'lacks'), ((run(0), {**run(1), 'steps': 61}), 'steps differs'),
    ((run(0), {**run(1), 'method': 'TDGAN'}), 'method differs'), ((run(0), {k: v for k, v in run(1).items() if k != 'hardware'}), 'lacks hardware')])
def test_merge_refuses(paths, runs, word):
    with pytest.raises(SystemExit, match=word): merge_results.merge(paths(*runs))

@pytest.mark.parametrize('text, word', [('{"rows": NaN}', 'finite'), ('{"rows": {', 'not JSON')])
def test_damaged_files_are_refused(tmp_path, text, word):
    (tmp_path/'metrics.json').write_text(text, encoding='utf-8')
    with pytest.raises(SystemExit, match=word): results.load(tmp_path/'metrics.json')
    with pytest.raises(SystemExit, match='no such file'): results.load(tmp_path/'absent.json')

def record(paths): return merge_results.merge(paths(run(0, .90, 8.), run(1, .80, 10.)))     # dice .85, hd 9, gap .585

def test_a_run_at_the_record_passes(paths):
    lines, faults = compare_results.compare(run(5, .85, 9.), record(paths))
    assert faults == [] and len(lines) == 4 and all(l.startswith('ok') for l in lines)

@pytest.mark.parametrize('dice, hd, plain, named, want', [
    (.84, 9., 0., {}, ['M5.y_l.dice', 'M5.m_l.dice', 'M5.gap_closed']), (.84, 9., .02, {}, []), (.82, 9., .02, {}, ['M5.y_l.dice', 'M5.m_l.dice']),
    (.85, 9.5, .02, {}, ['M5.y_l.hd']), (.85, 9.5, .02, dict(hd=.1), []), (.85, 10., .02, dict(hd=.1), ['M5.y_l.hd']), (.99, 1., 0., {}, [])])
def test_more_dice_and_less_distance_are_better(paths, dice, hd, plain, named, want):
    assert compare_results.compare(run(5, dice, hd), record(paths), plain, named)[1] == want

def test_an_absent_number_is_a_fault_and_an_absent_row_is_said(paths):
    r = run(5, .85, 9.); del r['rows']['M5']['m_l']
    assert compare_results.compare(r, record(paths))[1] == ['M5.m_l.dice']
    rec = record(paths); rec['rows']['M1'] = {'m_l': dict(dice=[.5, .5])}
    lines, faults = compare_results.compare(run(5, .85, 9.), rec)
    assert faults == [] and 'not run: M1' in lines

@pytest.mark.parametrize('change', [dict(method='TDGAN'), dict(size='full'), dict(rows={'M9': {'y_l': dict(dice=.9)}})])
def test_unlike_is_not_compared(paths, change):
    with pytest.raises(SystemExit): compare_results.compare({**run(), **change}, record(paths))

def test_unknown_metric_is_refused(paths):
    with pytest.raises(SystemExit, match='unknown metric'): compare_results.compare(run(), {**record(paths), 'rows': {'M5': {'y_l': dict(shine=[1.])}}})

def test_tolerances():
    assert compare_results.tolerances(['0.03', 'hd=0.3']) == (.03, dict(hd=.3)) and compare_results.tolerances(['hd=1']) == (0., dict(hd=1.))
    for bad in (['a'], ['.1', '.2'], ['hd=x']):
        with pytest.raises(SystemExit): compare_results.tolerances(bad)

def test_the_table_has_mean_and_population_deviation(tmp_path, paths):
    assert results_table.tables(tmp_path/'none') == {}
    merge_results.write(record(paths), tmp_path/'40_sadn_tiny.json')
    text = results_table.tables(tmp_path)['40_sadn_tiny']
    assert '| M5 | y_l | 0.850 ± 0.050 | 9.00 ± 1.00 | 0.585 ± 0.005 |' in text      # ddof 0: the sample deviation of .8 and .9 is 0.071
    assert '|  | m_l | 0.750 ± 0.050 | – |  |' in text and 'seeds 0 1' in text and 'results/40_sadn_tiny.json' in text

def test_the_short_table_tells_the_share_of_the_gap(tmp_path, monkeypatch):
    rows = dict(low=dict(y=dict(dice=[.4, .6])), ours=dict(y=dict(dice=[.6, .8])), high=dict(y=dict(dice=[.9, .9])))
    (tmp_path/'40_x.json').write_text(json.dumps(dict(rows=rows, gap_closed=dict(ours=[.4, .62]))))
    (tmp_path/'41_y.json').write_text(json.dumps(dict(rows=rows)))
    monkeypatch.setattr(results_table, 'headlines', [['40_x', 'bone', 'some', 'dice', 'low y', 'ours y', 'high y'], ['41_y', 'bone', 'some', 'dice', 'low y', 'ours y', '–']])
    text = results_table.headline(tmp_path, '# All\n\n### Bone: 3,5 `steps`\n\n<!-- 40_x -->\n').splitlines()
    assert text[2] == '| [bone](../RESULTS.md#bone-35-steps) | some | Dice | `ours y` | 0.500 ± 0.100 | 0.700 ± 0.100 | 0.900 ± 0.000 | 51 % |'      # the mean of the seeds' shares, not the share of the means, which is 50
    assert text[3].endswith('| 0.700 ± 0.100 | – | – |') and len(text) == 4

def test_a_record_without_its_place_is_refused():
    results_table.refuse_untold('<!-- a -->\n\n<!-- /a -->', ['a'])
    with pytest.raises(SystemExit, match='b stands on one side only'): results_table.refuse_untold('<!-- a -->\n\n<!-- /a -->', ['a', 'b'])
    with pytest.raises(SystemExit, match='a stands on one side only'): results_table.refuse_untold('<!-- a -->\n\n<!-- /a -->', [])

def test_command_line(tmp_path, paths):
    py = lambda *words: subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, encoding='utf-8')
    rec, (good, bad) = tmp_path/'rec.json', paths(run(0), run(1, .5))
    assert py(root/'dev/merge_results.py', rec, good).returncode == 0
    assert py(root/'dev/compare_results.py', good, rec).returncode == 0
    r = py(root/'dev/compare_results.py', bad, rec, '--tolerance', '0.1', 'hd=0.3')
    assert r.returncode == 1 and 'under the recorded value: M5.y_l.dice' in r.stderr
    assert py(root/'dev/merge_results.py', good, bad).returncode == 1      # the arguments swapped: a run is never overwritten
    assert json.loads(good.read_text(encoding='utf-8')) == run(0)

def test_every_record_of_the_project_can_be_read():
    for p in (root/'results').glob('*.json'):
        r = results.load(p)
        for (_, _, m), v in results.flat(r['rows']).items():
            results.direction(m)
            assert len(v) == len(r.get('folds', r['seeds'])), (p.name, m)
