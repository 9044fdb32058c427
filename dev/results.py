"What the three result scripts share: one run's metrics.json, the record of several seeds, and which way is better."
import json, math, statistics
from pathlib import Path

root = Path(__file__).resolve().parent.parent
higher = {'dice', 'dice_whole', 'precision', 'recall', 'psnr', 'ssim', 'ncc', 's_score', 'gap_closed', 'accuracy', 'inside', 'scans'}
lower = {'hd', 'hd95', 'assd', 'mae', 'edge_mae', 'surface_mm', 'p2s_mm', 'stray_mm', 'lost', 'empty'}
shown = dict(dice='Dice', dice_whole='Dice, read whole', hd='HD mm', hd95='HD95 mm', assd='ASSD mm', precision='precision', recall='recall', mae='MAE', edge_mae='edge MAE',
             psnr='PSNR', ssim='SSIM', ncc='NCC', s_score='S-score', surface_mm='surface mm', p2s_mm='point to surface mm', stray_mm='surface to bone mm', lost='lost levels', inside='marked voxels that are bone', empty='empty', gap_closed='gap closed')
same = ('method', 'size', 'steps', 'command')     # what the seeds of one record must share

class Refused(SystemExit):
    "A refusal: printed on stderr, exit code 1."

def load(path):
    "A JSON file of numbers that are numbers."
    path = Path(path)
    if not path.is_file(): raise Refused(f'{path}: no such file; give the metrics.json that a 4x notebook wrote in its `out` folder')
    def not_a_number(name): raise Refused(f'{path}: found {name}, needed a finite number or null; run again')
    try: return json.loads(path.read_text(encoding='utf-8'), parse_constant=not_a_number)
    except json.JSONDecodeError as e: raise Refused(f'{path}: not JSON ({e}); was the run stopped while it wrote?')

def flat(rows):
    "rows.M5.y_l.dice as {('M5','y_l','dice'): value}."
    return {(r, o, m): v for r, outputs in rows.items() for o, metrics in outputs.items() for m, v in metrics.items()}

def direction(metric):
    "+1 when more is better, -1 when less is."
    if metric in higher: return 1
    if metric in lower: return -1
    raise Refused(f'{metric}: unknown metric; add it to `higher` or `lower` in dev/results.py')

def numbers(values): return [v for v in (values if isinstance(values, list) else [values]) if v is not None]

def mean(values):
    "Mean of the values that are there; None when none is."
    v = numbers(values)
    return statistics.fmean(v) if v else None

def spread(values):
    "Population standard deviation (the paper's tables divide by n)."
    v = numbers(values)
    return statistics.pstdev(v) if v else None
