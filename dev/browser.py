"""Chapters as a reader meets them: JupyterLab in headless Chromium, every cell run, sliders moved.

    python dev/browser.py FOLDER 27_spade 12_cbct       FOLDER: a copy of the project, for Lab saves what it opens

Fails on a cell error, an error in a widget's callback, a request to another machine, or a slider that leaves its picture as it was.
"""
import argparse, json, os, secrets, socket, subprocess, sys, tempfile, time
from pathlib import Path
from urllib.parse import urlsplit
from playwright.sync_api import sync_playwright

chromium = os.environ.get('CHROMIUM', '/usr/bin/chromium')
flags = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--disable-quic', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']
settings = {                                     # Lab's own: no news, no update check, every cell drawn though it is out of view
    '@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False),
    '@jupyterlab/extensionmanager-extension:plugin': dict(enabled=False, disclaimed=False),
    '@jupyterlab/notebook-extension:tracker': dict(windowingMode='none')}

def local(url):
    u = urlsplit(url)
    return u.scheme in ('data', 'blob', 'about', 'chrome-error') or u.hostname == '127.0.0.1'

class Lab:
    "A JupyterLab server on 127.0.0.1 with a token, settings of its own, and nothing fetched."
    def __init__(self, folder):
        self.tmp, self.token = tempfile.TemporaryDirectory(prefix='xmodseg-lab-'), secrets.token_hex(16)
        tmp = Path(self.tmp.name)
        (tmp/'app/settings').mkdir(parents=True)
        (tmp/'overrides').mkdir()
        for plugin, values in settings.items():
            package, name = plugin.split(':')
            (tmp/'settings'/package).mkdir(parents=True, exist_ok=True)
            (tmp/'settings'/package/f'{name}.jupyterlab-settings').write_text(json.dumps(values), encoding='utf-8')
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        self.url, self.log = f'http://127.0.0.1:{port}', open(tmp/'lab.log', 'w+')
        env = {**os.environ, 'JUPYTER_CONFIG_DIR': str(tmp/'config'), 'JUPYTERLAB_SETTINGS_DIR': str(tmp/'settings'),
               'JUPYTERLAB_WORKSPACES_DIR': str(tmp/'workspaces'), 'JUPYTER_RUNTIME_DIR': str(tmp/'runtime'), 'IPYTHONDIR': str(tmp/'ipython')}
        options = [f'--ServerApp.port={port}', '--ServerApp.ip=127.0.0.1', '--ServerApp.port_retries=0', f'--IdentityProvider.token={self.token}',
                   f'--ServerApp.root_dir={folder}', '--ServerApp.open_browser=False', '--ServerApp.allow_root=True',
                   '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.extension_manager=readonly']
        self.process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *options], env=env, stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(240):
            with socket.socket() as s:
                if s.connect_ex(('127.0.0.1', port)) == 0: return
            if self.process.poll() is not None: break
            time.sleep(.5)
        self.close()
        sys.exit('JupyterLab did not start:\n' + self.tail())
    def tail(self):
        self.log.flush(); self.log.seek(0)
        return self.log.read()[-3000:]
    def __enter__(self): return self
    def __exit__(self, *_): self.close(); self.log.close(); self.tmp.cleanup()
    def close(self):
        self.process.terminate()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill()

class Watch:
    "What a page did: requests to other machines, errors that its kernel sent (cells and callbacks alike), errors of its scripts."
    def __init__(self, context, page):
        self.remote, self.errors, self.scripts = [], [], []
        context.route(lambda url: not local(url), self.refuse)
        page.on('websocket', self.socket)
        page.on('pageerror', lambda e: self.scripts.append(str(e)[:300]))
    def refuse(self, route): self.remote.append(route.request.url); route.abort()
    def socket(self, ws):
        if urlsplit(ws.url).hostname != '127.0.0.1': self.remote.append(ws.url)
        ws.on('framereceived', self.frame)
    def frame(self, data):
        data = data if isinstance(data, bytes) else data.encode()
        head = data[:3000]
        if b'"msg_type": "error"' in head or b'"msg_type":"error"' in head:
            text = data[data.find(b'"ename"'):].decode(errors='replace') if b'"ename"' in data else data.decode(errors='replace')
            self.errors.append(text[:600])

def prompts(page): return page.locator('.jp-CodeCell .jp-InputPrompt').all_text_contents()

def idle(page, limit, done=lambda: True):
    "Wait until the kernel has been idle for two seconds and `done`."
    t, still = time.time(), 0
    while still < 4:
        if time.time() - t > limit: raise TimeoutError(f'not idle after {limit} s; prompts: {" ".join(prompts(page))}')
        page.wait_for_timeout(500)
        still = still + 1 if page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').count() and done() else 0

def begun(page, seconds):
    "Whether a cell waits [*] or is done [7] within these seconds: a click during a reconnection is lost."
    for _ in range(2*seconds):
        if any(c in '*0123456789' for p in prompts(page) for c in p): return True
        page.wait_for_timeout(500)

def run_all(page, limit):
    "Run > Run All Cells, then wait until the kernel is idle and no cell waits; returns seconds."
    t = time.time()
    for _ in range(3):
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        if begun(page, 20): break
    else: raise TimeoutError('Run All Cells started nothing')
    idle(page, limit, done=lambda: not any('*' in p for p in prompts(page)))
    return time.time() - t

def pictures(cell):
    "What a cell shows: the sources of its images and the content of its canvases."
    return cell.evaluate('''c => [...c.querySelectorAll('.jp-OutputArea img, .jp-Cell-outputArea img')].map(i => i.src)
        .concat([...c.querySelectorAll('canvas')].map(k => { try { return k.toDataURL() } catch (e) { return 'tainted' } }))''')

def changed(page, cell, before, limit=20):
    "Seconds until the cell shows pictures that differ from `before`; None when it never does."
    t = time.time()
    while time.time() - t < limit:
        now = pictures(cell)
        if now and now != before: return time.time() - t
        page.wait_for_timeout(50)

def move(page, cell, handle):
    "One press of an arrow key, in the direction that has room; returns the seconds until the picture is another."
    handle.scroll_into_view_if_needed()
    before = pictures(cell)
    at, top = (float(handle.get_attribute(a) or 'nan') for a in ('aria-valuenow', 'aria-valuemax'))
    handle.focus()
    handle.press('ArrowLeft' if at >= top else 'ArrowRight')
    return changed(page, cell, before)

def sweep(page, handle):
    "From one end over a few steps to the other end, without waiting for pictures: no position may raise."
    for key in ('Home', *['ArrowRight']*4, 'End', 'ArrowLeft'):
        handle.press(key)
        page.wait_for_timeout(60)

def sliders(page):
    "Every slider of the page is moved, by each of its handles; returns (label, seconds until the picture was another, or None) for each."
    found = []
    for cell in page.locator('.jp-CodeCell:has(.noUi-handle)').all():
        for box in cell.locator('.widget-slider').all():
            label = (box.locator('.widget-label').first.text_content() or '').strip() or 'slider'
            for handle in box.locator('.noUi-handle').all():     # two of them where a range is chosen
                found.append((label, move(page, cell, handle)))
                page.wait_for_timeout(300)
                sweep(page, handle)
                idle(page, 60)
    return found

def switches(page):
    "Every other control of a live figure is used once: check boxes, lists, the button that plays a film; (label, seconds or None) for each."
    found = []
    use = {'.widget-checkbox input': lambda c: c.click(), '.widget-dropdown select': lambda c: c.select_option(index=1 - min(1, c.evaluate('s => s.selectedIndex'))), '.widget-play button': lambda c: c.click()}
    for cell in page.locator('.jp-CodeCell:has(.noUi-handle)').all():
        for kind, act in use.items():
            for box in cell.locator(kind.split()[0]).all():
                label = (box.locator('.widget-label').first.text_content() if box.locator('.widget-label').count() else '').strip('\u200b ') or kind.split()[0][8:]
                control = box.locator(kind.split()[1]).first
                control.scroll_into_view_if_needed()
                before = pictures(cell)
                act(control)
                found.append((label, changed(page, cell, before)))
                if 'play' in kind: control.click()               # the same button stops it
                idle(page, 60)
    return found

def visit(lab, browser, folder, name, limit):
    "Open a chapter, run it, move its sliders, use its other controls; returns the list of faults."
    context = browser.new_context(viewport=dict(width=1400, height=1000), service_workers='block')
    page = context.new_page()
    page.set_default_timeout(60_000)
    watch, faults = Watch(context, page), []
    try:
        page.goto(f'{lab.url}/lab/workspaces/{name}/tree/nbs/{name}.ipynb?token={lab.token}')
        page.locator('.jp-Notebook .jp-CodeCell').first.wait_for(timeout=120_000)
        idle(page, 120)
        seconds = run_all(page, limit)
        try: page.locator('.noUi-handle').first.wait_for(timeout=15_000)
        except Exception: pass                   # no slider: said below
        found = sliders(page)
        found += switches(page) if found else []
        page.keyboard.press('Control+s')
        page.wait_for_timeout(1500)
        print(f'{name}: {page.locator(".jp-CodeCell").count()} code cells in {seconds:.0f} s; controls: ' +
              (', '.join(f'{l} {"no change" if s is None else f"{s:.2f} s"}' for l, s in found) or 'none'), flush=True)
        if not found: faults.append('no slider found')
        faults += [f'control {l!r} leaves its picture as it was' for l, s in found if s is None]
        cells = json.loads((folder/'nbs'/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
        faults += [f'cell error: {o["ename"]}: {o["evalue"]}' for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error']
        shown = page.locator('.jp-OutputArea-output:has-text("Traceback (most recent call last)")')
        faults += [f'traceback on the page: {t[-300:]}' for t in shown.all_text_contents()]
    except Exception as e: faults.append(f'{type(e).__name__}: {str(e)[:1500]}')
    faults += [f'error from the kernel: {e}' for e in watch.errors] + [f'remote request: {u}' for u in watch.remote]
    faults += [f'script error: {s}' for s in watch.scripts]
    if faults and os.environ.get('XMODSEG_SHOTS'): page.screenshot(path=Path(os.environ['XMODSEG_SHOTS'])/f'{name}.png')
    context.close()
    return faults

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('folder', type=Path); ap.add_argument('names', nargs='+'); ap.add_argument('--limit', type=int, default=300, help='seconds a chapter may take')
    a = ap.parse_args()
    folder, bad = a.folder.resolve(), 0
    absent = [n for n in a.names if not (folder/'nbs'/f'{n}.ipynb').exists()]
    if absent: sys.exit('no such chapter: ' + ', '.join(absent))
    with Lab(folder) as lab, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=flags, headless=True)
        for name in a.names:
            faults = visit(lab, browser, folder, name, a.limit)
            bad += bool(faults)
            for f in faults: print(f'  FAILED {name}: {f}', flush=True)
        browser.close()
    sys.exit(bool(bad))
