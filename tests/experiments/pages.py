"""Pages as a reader and a browser meet them."""

import html.parser
import shutil
import subprocess

import pytest

PNG = b"\x89PNG\r\n\x1a\n"


class Page(html.parser.HTMLParser):
    """What a reader of the page meets."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.sources, self.ids = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.links += [values[key] for key in ("href",) if key in values]
        self.sources += [values[key] for key in ("src",) if key in values]
        self.ids |= {values["id"]} if "id" in values else set()


def require_readable(text):
    """That a page stands alone, and can be read on a phone and by keyboard; returns it."""
    page = Page(text)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.links and all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("h1") == 1 and kinds.count("main") == 1 and kinds.count("nav") == 1
    assert not {"script", "link", "iframe", "object"} & set(kinds) and "url(" not in text and "@import" not in text
    assert ("html", {"lang": "en"}) in page.tags
    skip = next(values for tag, values in page.tags if tag == "a")
    assert skip == {"class": "skip", "href": "#parts"} and "parts" in page.ids
    assert all(values.get("alt") for tag, values in page.tags if tag == "img")
    assert any(values.get("name") == "viewport" for tag, values in page.tags if tag == "meta")
    for tag, values in page.tags:
        if values.get("class") == "scroll":
            assert values["tabindex"] == "0" and values["role"] == "region" and values["aria-label"], tag
    return page


def browser():
    """A headless browser, if there is one."""
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    return found or pytest.skip("needs a browser: chromium or google-chrome on the path")


def opened(path, folder, width, height):
    """What a browser without a network makes of a page in a window of this size: its picture and its elements."""
    picture, data = folder / "page.png", folder / "profile"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={data}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},{height}"]
    command = [browser(), *options]
    subprocess.run([*command, f"--screenshot={picture}", path.as_uri()], check=True, capture_output=True, timeout=120)
    dumped = subprocess.run([*command, "--dump-dom", path.as_uri()], check=True, capture_output=True, timeout=120)
    content = picture.read_bytes()
    assert content.startswith(PNG) and int.from_bytes(content[16:20], "big") == width
    return content, dumped.stdout.decode()
