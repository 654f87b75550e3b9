"""Serve a folder over HTTP, with ranges, and remember what was asked for."""

import http.server
import re
import threading
from contextlib import contextmanager


class _Handler(http.server.SimpleHTTPRequestHandler):
    """One range of bytes a request; python -m http.server has none."""

    ranges, pages, headers_sent = True, {}, {}

    def end_headers(self):
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        super().end_headers()

    def do_GET(self):
        page = self.pages.get(self.path.split("?")[0])
        if page is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode())

    def send_head(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted or not self.ranges:
            self.server.asked.append((self.path, None))
            return super().send_head()
        first, last = map(int, wanted.groups())
        self.server.asked.append((self.path.split("?")[0], (first, last)))
        try:
            file = open(self.translate_path(self.path), "rb")  # noqa: SIM115 (the base class closes it)
        except OSError:
            return self.send_error(404)
        size = file.seek(0, 2)
        if first >= size:
            file.close()
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return None
        last = min(last, size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        file.seek(first)
        self._left = last - first + 1
        return file

    def copyfile(self, source, outputfile):
        left = getattr(self, "_left", None)
        self._left = None
        outputfile.write(source.read() if left is None else source.read(left))

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(folder, *, ranges=True, pages=None, headers=None):
    """Yield the address of the folder and of some pages by path, and a list of (path, range) that grows."""
    handler = type("Handler", (_Handler,), {"ranges": ranges, "pages": pages or {}, "headers_sent": headers or {}})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: handler(*arguments, directory=folder)
    ) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.asked
        finally:
            server.shutdown()
            thread.join()
