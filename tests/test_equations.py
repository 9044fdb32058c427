"Every required equation has a function, a test and a heading; EQUATIONS.md tells the same."
import pytest
import equations as eq

rows = {r[0]: r for r in eq.table()}

@pytest.mark.parametrize('i', eq.required)
def test_required_equation(i): assert eq.faults([rows[i]]) == []

def test_table_is_in_step():
    f = eq.root/'EQUATIONS.md'
    assert f.exists() and f.read_text(encoding='utf-8') == eq.markdown(list(rows.values())), 'run python dev/equations.py --write'

@pytest.mark.parametrize('text, want', [
    ('(SADN.E7)', ['SADN.E7']), ('SADN.E8, E9', ['SADN.E8', 'SADN.E9']), ('(SADN.E1, SADN.E2)', ['SADN.E1', 'SADN.E2']), ('SADN.E1 to E3', ['SADN.E1', 'SADN.E2', 'SADN.E3']),
    ('SADN.E1-E5 shapes', [f'SADN.E{i}' for i in range(1, 6)]), ('SADN.E6 to SADN.E8', ['SADN.E6', 'SADN.E7', 'SADN.E8']), ('TDGAN.Ea and Eb', ['TDGAN.Ea', 'TDGAN.Eb']),
    ('SCOL.E5b', ['SCOL.E5b']), ('SADN.E10 and SCOL.E2', ['SADN.E10', 'SCOL.E2']), ('SADN.Every', []), ('plain words, E7 alone', [])])
def test_ids_in_a_text(text, want): assert eq.ids(text) == want

@pytest.mark.parametrize('name, want', [
    ('test_SADN_E7_zero', ['SADN.E7']), ('test_SADN_E12_E13_gradients', ['SADN.E12', 'SADN.E13']), ('test_SADN_E1_to_E3_shapes', ['SADN.E1', 'SADN.E2', 'SADN.E3']),
    ('test_TDGAN_Ea_sigmoid', ['TDGAN.Ea']), ('test_SADN_E7', ['SADN.E7']), ('test_pool', []), ('test_SADN_Every_row', [])])
def test_ids_in_a_name(name, want): assert eq.ids_of_test(name) == want

def test_a_missing_function_test_or_heading_is_a_fault():
    row = ('SADN.E7', 'title', 'a=b', ['shape.f'], [('test_shape.py', 'test_SADN_E7')], ['26_shape'])
    assert eq.faults([row]) == []
    for at in (2, 3, 4): assert len(eq.faults([tuple([] if k == at else v for k, v in enumerate(row))])) == 1

def test_bars_do_not_break_the_table(): assert eq._math(r'\|a\| + |b|').count('|') == 0
