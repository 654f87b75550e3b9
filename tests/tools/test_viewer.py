"""The viewer in headless Chromium: remote and local files, bad ones, what it reads, keys, hostile strings."""

import json
import os
import re
import shutil
import subprocess

import pytest

from tests.support import vectors
from tests.support.paths import ROOT
from tests.support.range_server import serving
from tools.fixtures import file_builder
from tools.viewer import bundle

VIEWER = "/tools/viewer/index.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium not found: the viewer is not tried here")

# A page around the viewer that does what a person would, and leaves what it saw in its own text.
AROUND = """<!doctype html><meta charset="utf-8">
<iframe id="viewer" width="1200" height="2000"></iframe><pre id="seen"></pre>
<script type="module">
const frame = document.getElementById('viewer');
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
let page;
async function until(test) {
  for (let i = 0; i < 600; i++) {
    const found = page && test();
    if (found) return found;
    await pause(20);
  }
  throw new Error(`waited in vain for ${test}`);
}
const all = (selector) => [...page.querySelectorAll(selector)];
const find = (selector, text = '') => all(selector).find((element) => element.textContent.includes(text));
const state = (wanted) => until(() => page.body.dataset.state === wanted);
async function visit(query) {
  await new Promise((done) => { frame.onload = done; frame.src = `VIEWER${query}`; });
  page = frame.contentDocument;
}
const fetched = async (path) => new File([await (await fetch(path)).blob()], path.split('/').at(-1));
const chosen = (file) => { const data = new DataTransfer(); data.items.add(file); return data; };
const seen = {};
try {
  BODY
} catch (error) {
  seen.error = String(error);
}
document.getElementById('seen').textContent = JSON.stringify(seen);
frame.remove();
</script>"""


def browse(url, folder, budget=20_000):
    """The document that Chromium ends with, and what it said on the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--virtual-time-budget={budget}",
               f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", url]  # fmt: skip
    environment = os.environ | {"HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, re.findall(r"CONSOLE:\d+\] (.*)", done.stderr)


@pytest.fixture
def looks(tmp_path):
    """Returns what the viewer shows of a file at a path below the repository's root, and the ranges it asked for."""

    def call(path, **options):
        with serving(ROOT, **options) as (base, asked):
            document, said = browse(f"{base}{VIEWER}?url={path}", tmp_path)
        assert said == []
        return document, [span for name, span in asked if name == path]

    return call


@pytest.fixture
def does(tmp_path):
    """Does something in the viewer, and returns what was put into ``seen`` meanwhile, and what was asked for."""

    def call(body, pages=None):
        around = AROUND.replace("VIEWER", VIEWER).replace("BODY", body)
        with serving(ROOT, pages={"/around.html": around} | (pages or {})) as (base, asked):
            document, said = browse(f"{base}/around.html", tmp_path)
        found = re.search(r'<pre id="seen">(.*?)</pre>', document, re.DOTALL)[1]
        seen = json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        assert "error" not in seen, (seen, said)
        assert said == []
        return seen, asked

    return call


def test_a_remote_file_is_read_by_ranges(looks):
    twin = vectors.twin(ROOT / "fixtures" / "container" / "hello.aibit")
    document, ranges = looks("/fixtures/container/hello.aibit")
    assert 'data-state="ready"' in document
    front = twin["header"]["front_matter_length"]
    assert ranges == [(0, 127), (128, 127 + front)]
    wanted = ("hello.aibit", twin["header"]["root"], "config.json", "model.parameters", "int8", "structure is right")
    for text in wanted:
        assert text in document


def test_a_bad_file_is_refused_with_its_code(looks):
    for name, code in (("alias-of-itself", "AIB-E411"), ("cut-by-one-byte", "AIB-E108"), ("empty", "AIB-E101")):
        document, _ = looks(f"/fixtures/bad/{name}.aibit")
        assert 'data-state="error"' in document and f"<strong>{code}</strong>" in document, name
        assert 'id="content"></div>' in document
    document, _ = looks("/fixtures/none.aibit")
    assert "<strong>AIB-E803</strong>" in document and "status 404" in document


def test_a_server_without_ranges_sends_small_files_whole(looks):
    document, ranges = looks("/fixtures/container/hello.aibit", ranges=False)
    assert 'data-state="ready"' in document and "taken whole" in document
    assert ranges == [None]


def test_a_shard_is_not_taken_for_a_model(looks):
    document, _ = looks("/fixtures/container/sharded-00002-of-00003.aibit")
    assert "Shard 2 of 3" in document


def test_every_good_file_is_shown(does):
    names = [path.name for path in vectors.GOOD]
    seen, _ = does(f"""
      for (const name of {json.dumps(names)}) {{
        await visit(`?url=/fixtures/container/${{name}}`);
        await until(() => page.body.dataset.state.match(/ready|error/));
        seen[name] = [page.body.dataset.state, page.querySelectorAll('section.card').length];
      }}
    """)
    assert seen == {name: ["ready", 6] for name in names}


def test_local_files_are_chosen_or_dropped(does):
    seen, asked = does("""
      await visit('');
      const file = await fetched('/fixtures/container/hello.aibit');
      page.getElementById('file').files = chosen(file).files;
      page.getElementById('file').dispatchEvent(new Event('change'));
      await state('ready');
      seen.chosen = page.querySelector('.title h2').textContent;
      const other = await fetched('/fixtures/bad/major-2.aibit');
      frame.contentWindow.dispatchEvent(new DragEvent('drop', { dataTransfer: chosen(other), cancelable: true }));
      await state('error');
      seen.dropped = page.getElementById('error').textContent;
    """)
    assert seen["chosen"] == "hello.aibit"
    assert seen["dropped"].startswith("AIB-E104")
    assert {span for name, span in asked if name.endswith(".aibit")} == {None}  # by the page around it alone


def test_documents_and_values_are_read_when_they_are_asked_for(does):
    twin = vectors.twin(ROOT / "fixtures" / "container" / "hello.aibit")
    seen, asked = does("""
      await visit('?url=/fixtures/container/hello.aibit');
      await state('ready');
      find('[aria-label=Documents] button').click();
      seen.document = (await until(() => find('[aria-label=Documents] pre'))).textContent;
      find('summary', 'int8').click();
      (await until(() => find('button.link', 'linear.weight'))).click();
      seen.detail = find('.detail').textContent;
      seen.focused = page.activeElement.className;
      find('button', 'Decode').click();
      seen.values = (await until(() => find('.values pre'))).textContent;
      find('button', 'Verify').click();
      seen.verified = (await until(() => find('p.level'))).textContent;
    """)
    assert seen["document"] == bytes.fromhex(twin["documents"][0]["data"]).decode()
    assert "shape [2, 4]" in seen["detail"] and "row_absmax" in seen["detail"] and seen["focused"] == "detail"
    values = [float(value) for value in seen["values"].split()]
    assert values == pytest.approx(twin["tensors"][0]["values"], rel=1e-6)
    assert seen["verified"].startswith("✓ Verified in full")
    regions = [(1088, 1151), (1152, 1295)]
    found = [span for name, span in asked if name == "/fixtures/container/hello.aibit"]
    assert found[:4] == [(0, 127), (128, 1087), *regions]


def test_what_is_damaged_is_an_error_where_it_is_shown(does):
    seen, _ = does("""
      for (const [name, card, button] of [
        ['document-bit-flipped', 'Documents', 'Show'], ['config-auto-map', 'Documents', 'Show'],
        ['int8-scale-nan', 'Summary', 'Verify'],
      ]) {
        await visit(`?url=/fixtures/bad/${name}.aibit`);
        await state('ready');
        find(`[aria-label=${card}] button`, button).click();
        seen[name] = (await until(() => find('.error strong'))).textContent;
      }
    """)
    assert seen == {"document-bit-flipped": "AIB-E602", "config-auto-map": "AIB-E706", "int8-scale-nan": "AIB-E502"}


def test_the_map_is_gone_through_with_keys(does):
    seen, _ = does("""
      await visit('?url=/fixtures/container/hello.aibit');
      await state('ready');
      const canvas = find('canvas');
      canvas.focus();
      const { KeyboardEvent, PointerEvent } = frame.contentWindow;
      const press = (key) => canvas.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
      press('ArrowRight');
      seen.first = find('.readout').textContent;
      press('End');
      seen.last = find('.readout').textContent;
      press('Enter');
      seen.chosen = find('.detail h3').textContent;
      const box = canvas.getBoundingClientRect();
      const place = { clientX: box.left + 1, clientY: box.top + 1, bubbles: true };
      canvas.dispatchEvent(new PointerEvent('pointermove', place));
      seen.hovered = find('.tip').textContent;
      const select = page.getElementById('way');
      select.value = 'role';
      select.dispatchEvent(new Event('change'));
      seen.legend = find('.legend').textContent;
    """)
    assert seen["first"] == seen["hovered"] == "header · 128 bytes at 0"
    assert seen["last"] == "norm.weight, values of f32 [4] · f32 [4] · 16 bytes at 1,280"
    assert seen["chosen"] == "norm.weight"
    assert "row_absmax 8 bytes" in seen["legend"]


def test_strings_of_a_file_are_text(does):
    """Markup does nothing, and what would hide or turn the rest of a line is an escape."""
    evil = "<img src=x onerror=\"document.title='owned'\">\u202e\u200bend"
    data = file_builder.good([("<b>w</b>", "f32", "f32", (4,), None)], {"a.b": evil}, {"i": evil.encode()})
    content = json.dumps(list(data))
    seen, _ = does(f"""
      await visit('');
      const file = new File([Uint8Array.from({content})], '<u>m</u>.aibit');
      page.getElementById('file').files = chosen(file).files;
      page.getElementById('file').dispatchEvent(new Event('change'));
      await state('ready');
      find('[aria-label=Documents] button').click();
      seen.document = (await until(() => find('[aria-label=Documents] pre'))).textContent;
      seen.metadata = find('td.text').textContent;
      seen.markup = page.querySelectorAll('img, b, i, u').length;
      seen.title = page.title;
    """)
    escaped = evil.replace("\u202e", "\\u{202e}").replace("\u200b", "\\u{200b}")
    assert seen["document"] == seen["metadata"] == escaped
    assert seen["markup"] == 0 and seen["title"] == "<u>m</u>.aibit · aibit viewer"


def test_one_page_opens_from_a_disk(tmp_path):
    """Its address is none that a server allows by itself: it must send the header that lets any page read."""
    page = tmp_path / "viewer.html"
    assert bundle.main([str(page)]) == 0
    with serving(ROOT, headers={"Access-Control-Allow-Origin": "*"}) as (base, asked):
        document, said = browse(f"{page.as_uri()}?url={base}/fixtures/container/hello.aibit", tmp_path)
    assert said == []
    assert 'data-state="ready"' in document and "linear.weight" not in document and "model.parameters" in document
    assert [span for _, span in asked] == [(0, 127), None, (128, 1087)]  # HEAD asks for the size
    document, said = browse((ROOT / "tools" / "viewer" / "index.html").as_uri(), tmp_path)
    assert "python -m tools.viewer.bundle" in document and 'data-state="empty"' in document
