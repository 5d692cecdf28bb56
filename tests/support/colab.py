"""A page that does with a "local runtime" what Google Colab's page does with it."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.browser import Browser, Page
from tests.support.components import require
from tests.support.processes import wait_until

# It asks with its cookies, says the token in each address, and shows what the cell printed, or why there is nothing.
_PAGE = b"""<!doctype html><title>Colab</title><pre></pre><script>
async function run(address, code) {
  const url = new URL(address), token = url.searchParams.get("token");
  const at = path => `${url.origin}${path}?token=${token}`;
  const ask = async (path, more) => {
    const answer = await fetch(at(path), {credentials: "include", ...more});
    if (!answer.ok) throw `${answer.status} of ${path}`;
    return answer.json();
  };
  await ask("/api/sessions");
  const kernels = await ask("/api/kernels");
  const headers = {"Content-Type": "application/json"};
  const kernel = kernels[0] || await ask("/api/kernels", {method: "POST", headers, body: "{}"});
  const socket = new WebSocket(at(`/api/kernels/${kernel.id}/channels`).replace("http", "ws"));
  const header = {msg_id: "1", msg_type: "execute_request", session: "1", username: "", version: "5.3", date: ""};
  const request = {channel: "shell", header, parent_header: {}, metadata: {}, content: {code, silent: false}};
  return new Promise((resolve, reject) => {
    socket.onopen = () => socket.send(JSON.stringify(request));
    socket.onerror = () => reject("no WebSocket");
    socket.onmessage = ({data}) => {
      const {msg_type, content} = JSON.parse(data);
      if (msg_type === "stream") resolve(content.text);
      if (msg_type === "error") reject(content.evalue);
    };
  });
}
const show = text => document.querySelector("pre").textContent = text;
const cell = (address, code) => { show(""); run(address, code).then(show, why => show(`error: ${why}`)); };
</script>"""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(_PAGE)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def colab(folder: Path) -> Iterator[Browser]:
    """A browser for which that page is at all addresses of google.com and example.com, as on the Internet."""
    require("openssl", "a page is served over TLS")
    folder.mkdir()
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=page -keyout key -out cert"
    subprocess.run(["openssl", *words.split()], cwd=folder, capture_output=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        at = f"127.0.0.1:{server.server_address[1]}"
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        names = ", ".join(f"MAP *.{domain}:443 {at}" for domain in ("google.com", "example.com"))
        try:
            with Browser(
                f"--host-resolver-rules={names}",
                f"--ip-address-space-overrides={at}=public",
                "--ignore-certificate-errors",
            ) as browser:
                yield browser
        finally:
            server.shutdown()
            thread.join()


def allow(browser: Browser, origin: str, setting: str = "granted") -> None:
    """What the user answers when the browser asks whether that page may reach this machine."""
    browser.ask("Browser.setPermission", permission={"name": "loopback-network"}, setting=setting, origin=origin)


def cell(page: Page, url: str, code: str) -> str:
    """What a cell prints at the page that is given that URL; `error: ` and the reason where it comes to none."""
    page.wait_for("window.run")
    page.get(f"cell({json.dumps(url)}, {json.dumps(code)}), 0")
    shown = "document.querySelector('pre').textContent"
    assert wait_until(lambda: bool(page.get(shown)), seconds=100, every=0.05), page.complaints
    return str(page.get(shown))
