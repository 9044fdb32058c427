"What belongs to the project: the files that git tracks or would track, also on uncommitted work."
import hashlib, shutil, subprocess
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ignored = {'__pycache__', '.ipynb_checkpoints', '.git', '.venv', '.pytest_cache', '.cache', 'build', 'dist', 'runs', 'figures', '_docs', '_proc'}

def files(root=root):
    "Every file of the project, relative to its root; without git, every file outside the ignored folders."
    git = subprocess.run(['git', '-c', 'safe.directory=*', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
                         cwd=root, capture_output=True, text=True, encoding='utf-8') if (root/'.git').exists() else None
    if git is not None and git.returncode == 0: found = [Path(f) for f in git.stdout.split('\0') if f]
    else: found = [p.relative_to(root) for p in root.rglob('*') if p.is_file() and not p.name.endswith('.pyc')]
    keep = lambda f: not ignored & set(f.parts) and not any(p.endswith('.egg-info') for p in f.parts) and (root/f).is_file()
    return sorted(f for f in set(found) if keep(f))

def copy(to, root=root):
    "A copy of the project in `to`, to run tools on that write where they stand."
    for f in files(root):
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/f, to/f)
    return to

def state(root=root):
    "File -> digest, to compare two moments or two copies."
    return {str(f): hashlib.sha256((root/f).read_bytes()).hexdigest() for f in files(root)}

def changes(before, after):
    "What differs between two states, one line a file."
    lines = [f'{f}: {"new" if f not in before else "gone" if f not in after else "changed"}' for f in sorted({*before, *after}) if before.get(f) != after.get(f)]
    return lines
