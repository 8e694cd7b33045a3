#!/usr/bin/python3
"""A small web application of the usual kind: pages, a search in SQLite, uploads, a report and a ping from a form.

`/diag?host=` puts its parameter into a shell's command line unchecked, as such applications do: the weakness that the
emulation of command injection uses. It listens on the endpoint's own network alone.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOME = "/var/lib/portal"


def shell(command):
    done = subprocess.run(command, shell=True, capture_output=True, timeout=20, check=False)
    return done.stdout + done.stderr


class Portal(BaseHTTPRequestHandler):
    def answer(self, body, kind="text/html"):
        if not isinstance(body, bytes):
            body = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        form = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/health":
            self.answer(json.dumps({"up": time.time()}), "application/json")
        elif url.path == "/search":
            with sqlite3.connect(HOME + "/items.db") as db:
                db.execute("create table if not exists items(name, seen)")
                db.execute("insert into items values(?, ?)", (form.get("q", ""), time.time()))
                self.answer(str(db.execute("select count(*) from items").fetchone()[0]))
        elif url.path == "/report":
            self.answer(shell(HOME + "/report.sh"), "text/plain")
        elif url.path == "/diag":
            self.answer(shell("ping -c 1 -W 1 " + form.get("host", "127.0.0.1")), "text/plain")
        else:
            self.answer("<h1>portal</h1>")

    def do_PUT(self):
        name = os.path.basename(self.path) or "upload"
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with open(os.path.join(HOME, "uploads", name), "wb") as file:
            file.write(data)
        self.answer("stored")

    def log_message(self, form, *args):
        with open(HOME + "/access.log", "a", encoding="utf-8") as log:
            log.write(form % args + "\n")


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Portal).serve_forever()
