"""The page at `/`: what is sent, over a real socket; and what a person meets, in a real browser behind a proxy."""

import http.client
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from browser import CHROMIUM, browsing
from prefix_proxy import proxying
from server_process import picture, serving
from tiny_onnx import describe, write_onnx

from serving.preprocessing import FORMATS
from serving.routes.page import ASSETS, POLICY

ROOT = Path(__file__).parents[2]
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
CLASSES = [HOSTILE, "a name " * 40, "owl"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("page")
    metadata = describe() | {"grpo_rm.classes": json.dumps(CLASSES)}
    with serving(write_onnx(directory / "tiny.onnx", bias=(0.5, 0, 0), metadata=metadata), directory) as server:
        yield server


def get(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read().decode()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


def linked(html):
    return re.findall(r'(?:src|href)="([^"]*)"', html)


def test_the_page_and_all_it_links_to(server):
    status, headers, html = get(server, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert {"page/style.css", "page/script.js", "page/icon.svg"} == set(linked(html))
    scripts = [name for name in ASSETS if name.endswith(".js")]
    imported = {name for script in scripts for name in re.findall(r'from "\./(.*)"', get(server, f"/page/{script}")[2])}
    assert imported | {"script.js"} == set(scripts)
    for name, kind in {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}.items():
        status, headers, _ = get(server, f"/page/{name}")
        assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")


@pytest.mark.parametrize("path", ["/", *[f"/page/{name}" for name in ASSETS]])
def test_headers_and_revalidation(server, path):
    status, headers, content = get(server, path)
    assert status == 200 and content
    assert headers["content-security-policy"] == "; ".join(f"{name} {value}" for name, value in POLICY.items())
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"
    for known in (headers["etag"], f'"other", W/{headers["etag"]}'):  # a proxy that compresses makes it weak
        status, again, content = get(server, path, If_None_Match=known)
        assert (status, content, again["etag"]) == (304, "", headers["etag"])
        assert again["content-security-policy"] == headers["content-security-policy"]
    assert get(server, path, If_None_Match='"other"')[0] == 200
    status, head, content = get(server, path, "HEAD")
    assert (status, content, head["content-length"]) == (200, "", headers["content-length"])


def test_policy():
    assert POLICY["default-src"] == "'none'" and POLICY["frame-ancestors"] == "'none'"
    assert POLICY["script-src"] == POLICY["style-src"] == POLICY["connect-src"] == "'self'"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2Fetc%2Fpasswd", "../app.py"])
def test_nothing_else_is_sent(server, name):
    assert get(server, f"/page/{name}")[0] == 404


def test_nothing_comes_from_elsewhere():
    for name, asset in ASSETS.items():
        text = asset.content.decode().replace("http://www.w3.org/2000/svg", "").replace("http://HOST:PORT", "")
        assert not re.search(r"https?:|url\(|@import|[\"'(]//", text), name
    html = ASSETS["index.html"].content.decode()
    assert not [link for link in linked(html) if link.startswith("/")], "it works below any path of a proxy"
    assert not re.search(r"<script>|<style>|\s(?:style|on\w+)=", html), "the policy would refuse it"


def test_text_is_never_set_as_html():
    code = "".join(asset.content.decode() for name, asset in ASSETS.items() if name.endswith(".js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|cookie", code)


def test_the_page_names_the_formats(server):
    html = get(server, "/")[2]
    assert not [name for name in FORMATS if name not in html]


def test_readyz_says_what_the_page_needs(server):
    content = server.request("/readyz").content
    assert content["limits"] == {"body_bytes": 32 * 1024 * 1024, "pixels": 64_000_000}
    assert content["model"]["num_classes"] == 3
    assert content["model"]["preprocessing"] == json.loads(describe()["grpo_rm.preprocessing"])


def test_the_wheel_brings_the_page(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert {f"serving/page/{name}" for name in ASSETS} <= set(wheel.namelist())


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(server, browser):
    """The page in the browser, and the proxy before it."""
    with proxying(server.port) as proxy:
        browser.console.clear()
        browser.open(proxy.url)
        browser.wait_for(f"{text('[data-field=name]')} === 'tiny.onnx'")
        yield browser, proxy


def text(selector):
    return f"document.querySelector({json.dumps(selector)}).innerText"


def all_text(selector):
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((element) => element.innerText)"


def finished(count):
    return f"document.querySelectorAll('.card[aria-busy=false]').length === {count}"


def write(path, content):
    path.write_bytes(content)
    return path


def test_drop_images(page, tmp_path):
    browser, _ = page
    browser.drop(
        write(tmp_path / "red.png", picture((255, 0, 51))),
        write(tmp_path / "blue.bmp", picture((0, 0, 255), "BMP", (300, 2))),
        write(tmp_path / "notes.txt", b"no image"),
    )
    browser.wait_for(finished(3))
    assert browser.run(all_text(".card h3")) == ["red.png", "blue.bmp", "notes.txt"]
    red, blue, notes = (f".card:nth-child({number})" for number in (1, 2, 3))
    names, shares = browser.run(all_text(f"{red} .name")), browser.run(all_text(f"{red} .share"))
    assert names[0] == HOSTILE and shares[0] == "66.9 %"  # exp(1.5) of exp(1.5) + exp(0) + exp(0.2)
    assert browser.run(all_text(f"{blue} .name"))[0] == "owl"
    assert "Not an image: none of AVIF, BMP" in browser.run(text(f"{notes} .problem"))
    assert browser.run(f"document.querySelector('{notes} .problem button').hidden"), "again would not help"
    assert browser.run(text(f"{red} .hint")), "without an index there is a hint"
    assert browser.run(text(f"{red} .answered")).startswith("Answered by tiny.onnx, version ")
    assert "the central square of 300\u00a0×\u00a02, as 8\u00a0×\u00a08" in browser.run(text(f"{blue} .seen"))
    assert browser.run(f"[...{pixels(red)}].slice(0, 4)") == [255, 0, 51, 255]
    assert browser.run("document.title") == "grpo-rm" and not browser.run("document.querySelector('[onerror]')")
    assert not [entry for entry in browser.console if "status of 40" not in str(entry) and "503" not in str(entry)]


def pixels(card):
    return f"document.querySelector('{card} canvas').getContext('2d').getImageData(0, 0, 1, 1).data"


def test_the_policy_is_obeyed(page):
    browser, _ = page
    assert browser.run("(() => { try { document.body.innerHTML = '<b>' } catch (error) { return error.name } })()") == (
        "TypeError"
    )


def test_the_key_is_asked_for(browser, tmp_path):
    model, keys = write_onnx(tmp_path / "tiny.onnx"), write(tmp_path / "keys", b"the-right-key-of-this-server")
    with serving(model, tmp_path, GRPO_RM_API_KEYS_FILE=str(keys)) as server:
        browser.open(server.url)
        browser.wait_for(f"{text('[data-field=name]')} === 'tiny.onnx'")
        images = [
            picture((255, 0, 0)),
            picture((0, 255, 0), "BMP", (2600, 2600)),
        ]  # 20 MB, refused before they are read
        browser.drop(*[write(tmp_path / str(number), image) for number, image in enumerate(images)])
        browser.wait_for("document.querySelector('#key').open")
        browser.run("document.querySelector('#key [value=cancel]').click()")
        browser.wait_for(finished(2))
        assert not browser.run("document.querySelector('#key').open"), "once is enough for all that wait"
        assert browser.run(all_text(".problem p")) == ["This server answers only with an API key."] * 2

        browser.run("document.querySelector('.card:nth-child(2) .problem button').click()")
        for key in ("a-wrong-one", "the-right-key-of-this-server"):
            browser.wait_for("document.querySelector('#key').open")
            assert browser.run("document.activeElement.id") == "key-input"
            browser.call("Input.insertText", text=key)
            browser.run("document.querySelector('#key [value=use]').click()")
        browser.wait_for("document.querySelectorAll('.classes li').length === 3")
        assert "does not know this key" in browser.run("document.querySelector('#key-reason').textContent")
        assert browser.run("Object.values(sessionStorage)") == ["the-right-key-of-this-server"]
        assert browser.run("localStorage.length") == 0 and browser.run("document.cookie") == ""
        assert browser.run("document.querySelector('#key-input').value") == ""
        browser.run("document.querySelector('#forget').click()")
        assert browser.run("sessionStorage.length") == 0


def test_a_busy_server_is_asked_again(page, tmp_path):
    browser, proxy = page
    proxy.busy = 1
    browser.drop(write(tmp_path / "red.png", picture((255, 0, 51))))
    browser.wait_for(f"{text('.problem')} === 'Too many images wait. Trying again in 1 s.'")
    browser.wait_for("document.querySelectorAll('.classes li').length === 3")
    assert browser.run("document.querySelector('.problem').hidden")


def test_no_model_yet(browser, tmp_path):
    with serving("models:/name@champion", tmp_path, MLFLOW_TRACKING_URI="") as server:
        server.wait_for(lambda content: content["error"])
        browser.open(server.url)
        browser.wait_for(f"{text('#notices')}.startsWith('No model is loaded yet: there is no MLflow store')")
        assert browser.run(text("[data-field=name]")) == "none yet"


def test_a_dense_model_shows_its_mask(browser, tmp_path):
    with serving(write_onnx(tmp_path / "dense.onnx", is_dense=True), tmp_path) as server:
        browser.open(server.url)
        browser.wait_for(f"{text('[data-field=name]')} === 'dense.onnx'")
        browser.drop(write(tmp_path / "blue.png", picture((0, 0, 255))))
        browser.wait_for(finished(1))
        assert browser.run(all_text(".card .name")) == ["owl"] and browser.run(text(".card .share")) == "100.0 %"
        sides = "(({{{0}: w, {1}: h}}) => [w, h].join())(document.querySelector('{2}'))".format
        assert browser.run(sides("naturalWidth", "naturalHeight", ".mask")) == "20,12", "of the image's own size"
        assert browser.run(sides("width", "height", ".card canvas")) == "20,12"
        assert "all of 20\u00a0×\u00a012" in browser.run(text(".card .seen"))
        assert browser.run("getComputedStyle(document.querySelector('.mask')).display") == "block"
