//! Closed vocabularies: programs, libraries, places and kinds of files that every Windows system has.
//!
//! Whatever is not in here reaches the model as a class, never by its name: a model that cannot see a tool's or
//! a laboratory's name cannot learn it. Lists are sorted; a test holds them so.

/// Where a path points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Short name for tokens.
    pub name: &'static str,
    /// The system's or installed software's, writable by administrators only.
    pub system: bool,
    /// Where an ordinary user can write.
    pub user: bool,
}

const fn place(name: &'static str, kind: u8) -> Place {
    Place { name, system: kind == b's', user: kind == b'u' }
}

/// First match wins, so the particular stands before the general. Places of the system count only at the root of a drive
/// (`C:\Users\me\Program Files\a.dll` lies in somebody's profile), the others anywhere in a path.
static PLACES: &[(&str, Place)] = &[
    (r"\windows\temp\", place("wintemp", b'u')),
    (r"\windows\system32\config\", place("config", b'-')),
    (r"\windows\system32\tasks\", place("tasks", b'-')),
    (r"\windows\system32\spool\", place("spool", b'-')),
    (r"\windows\system32\wbem\", place("wbem", b's')),
    (r"\windows\system32\windowspowershell\", place("pshome", b's')),
    (r"\windows\syswow64\", place("sys32", b's')),
    (r"\windows\system32\", place("sys32", b's')),
    (r"\windows\winsxs\", place("winsxs", b's')),
    (r"\windows\microsoft.net\", place("dotnet", b's')),
    (r"\windows\assembly\", place("dotnet", b's')),
    (r"\windows\prefetch\", place("prefetch", b'-')),
    (r"\windows\", place("windows", b's')),
    // Packaged apps: Windows checks the signature of the package when it installs one, and their files bear none.
    (r"\program files\windowsapps\", place("apps", b's')),
    (r"\program files\", place("progf", b's')),
    (r"\program files (x86)\", place("progf", b's')),
    (r"\programdata\microsoft\windows defender\", place("pdms", b's')),
    (r"\startup\", place("startup", b'u')),
    (r"\programdata\microsoft\", place("pdms", b's')),
    (r"\programdata\", place("pdata", b'u')),
    (r"\appdata\local\temp\", place("temp", b'u')),
    // Programs that come with Windows or Office and install themselves for each user.
    (r"\appdata\local\microsoft\onedrive\", place("apphome", b'u')),
    (r"\appdata\local\microsoft\teams\", place("apphome", b'u')),
    (r"\appdata\local\microsoft", place("applocalms", b'u')),
    (r"\appdata\local", place("applocal", b'u')),
    (r"\appdata\roaming\microsoft", place("approamms", b'u')),
    (r"\appdata\roaming", place("approam", b'u')),
    (r"\downloads\", place("downloads", b'u')),
    (r"\desktop\", place("desktop", b'u')),
    (r"\documents\", place("documents", b'u')),
    (r"\users\public", place("public", b'u')),
    (r"\users\", place("users", b'u')),
    (r"\temp\", place("temp", b'u')),
    (r"\perflogs", place("temp", b'u')),
];
const UNC: Place = place("unc", b'u');
const ROOT: Place = place("root", b'u');
const OTHER: Place = place("otherdir", b'-');
const NOWHERE: Place = place("nopath", b'-');

/// Where a lower-case path points. Device and environment prefixes are understood.
pub fn place_of(path: &str) -> Place {
    let path = path.strip_prefix(r"\\?\").or(path.strip_prefix(r"\??\")).unwrap_or(path);
    let (drive, rest) = if let Some(rest) = path.strip_prefix(r"\device\harddiskvolume") {
        (true, rest.trim_start_matches(|c: char| c.is_ascii_digit()))
    } else if let Some(rest) = path.strip_prefix("%systemroot%").or(path.strip_prefix(r"\systemroot")) {
        return if rest.starts_with(r"\system32\") { place("sys32", b's') } else { place("windows", b's') };
    } else if path.starts_with(r"\\") {
        return UNC;
    } else if path.as_bytes().get(1) == Some(&b':') {
        (true, &path[path.floor_char_boundary(2)..])
    } else {
        (false, path)
    };
    let lies_in = |part: &str, place: &Place| if place.system { rest.starts_with(part) } else { rest.contains(part) };
    if let Some((_, place)) = PLACES.iter().find(|(part, place)| lies_in(part, place)) {
        return *place;
    }
    match (drive, rest.matches('\\').count()) {
        (false, _) => NOWHERE,
        (true, 0 | 1) => ROOT,
        (true, _) => OTHER,
    }
}

/// The last component of a path.
pub fn base(path: &str) -> &str {
    path.rsplit(['\\', '/']).next().unwrap_or_default().trim_matches('"')
}

/// What kind of file the (lower-case) name belongs to, by its extension.
pub fn file_kind(path: &str) -> &'static str {
    let Some((_, extension)) = base(path).rsplit_once('.') else { return "none" };
    match extension {
        "exe" | "com" | "scr" | "pif" | "cpl" => "exe",
        "dll" | "ocx" | "sys" | "drv" => "dll",
        "ps1" | "psm1" | "psd1" | "vbs" | "vbe" | "js" | "jse" | "wsf" | "hta" | "bat" | "cmd" | "sct" | "xsl"
        | "py" | "inf" => "script",
        "doc" | "docm" | "docx" | "xls" | "xlsm" | "xlsx" | "rtf" | "pdf" => "doc",
        "zip" | "rar" | "7z" | "cab" | "iso" => "arc",
        "lnk" | "url" => "lnk",
        "dmp" | "mdmp" => "dump",
        "log" | "etl" | "evtx" | "tmp" => "log",
        "dat" | "db" | "xml" | "json" | "ini" | "txt" => "data",
        "pf" => "pf",
        _ => "other",
    }
}

/// A running program: a name from the closed list, or the class of the place it runs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// `powershell`, or `@temp` for a program that no Windows system has.
    pub name: &'static str,
    /// Broad class: `sh`, `lol`, `off`, `bro`, `usr`, `oth`, or the name of one of the pillars of the system.
    pub class: &'static str,
    /// Where it lies.
    pub place: Place,
}

impl Program {
    /// Runs from where users can write.
    pub fn is_user(&self) -> bool {
        self.class == "usr"
    }

    /// A class that attackers live off: scripts' hosts, tools that run others' code, users' own programs.
    pub fn is_suspect(&self) -> bool {
        matches!(self.class, "sh" | "lol" | "usr")
    }

    /// Starts unrelated programs, so relatives through it mean nothing.
    pub fn is_hub(&self) -> bool {
        matches!(
            self.name,
            "services"
                | "svchost"
                | "wininit"
                | "winlogon"
                | "explorer"
                | "csrss"
                | "smss"
                | "system"
                | "lsass"
                | "userinit"
        )
    }
}

/// The program of a lower-case image path.
pub fn program(image: &str) -> Program {
    let image = image.trim();
    if matches!(image, "" | "-" | "<unknown process>") {
        return Program { name: "unk", class: "unk", place: NOWHERE };
    }
    if image == "system" {
        return Program { name: "system", class: "system", place: NOWHERE };
    }
    let place = place_of(image);
    let stem = base(image).trim_end_matches(".exe");
    let listed = PROGRAMS.binary_search(&stem).map(|at| PROGRAMS[at]);
    match listed {
        Ok(name) if place.system || (place == NOWHERE && !image.contains('\\')) => {
            Program { name, class: class_of(name), place }
        }
        _ => {
            let class = if place.user { "usr" } else { "oth" };
            Program { name: unnamed(place), class, place }
        }
    }
}

fn unnamed(place: Place) -> &'static str {
    match place.name {
        "wintemp" | "temp" => "@temp",
        "sys32" | "wbem" | "pshome" | "winsxs" | "dotnet" | "windows" => "@windows",
        "progf" | "apps" | "pdms" => "@progf",
        "pdata" => "@pdata",
        "startup" => "@startup",
        "applocal" | "applocalms" | "approam" | "approamms" => "@appdata",
        "apphome" => "@apphome",
        "downloads" | "desktop" | "documents" => "@home",
        "public" | "users" => "@users",
        "root" => "@root",
        "unc" => "@unc",
        _ => "@other",
    }
}

fn class_of(name: &'static str) -> &'static str {
    match name {
        "powershell" | "pwsh" | "powershell_ise" | "cmd" | "cscript" | "wscript" | "mshta" => "sh",
        "winword" | "excel" | "powerpnt" | "outlook" | "msaccess" | "mspub" | "visio" | "onenote" => "off",
        "iexplore" | "chrome" | "firefox" | "msedge" | "opera" => "bro",
        "system" | "lsass" | "svchost" | "services" | "explorer" | "wmiprvse" | "csrss" | "wininit" | "winlogon"
        | "msmpeng" | "wsmprovhost" => name,
        // Runs others' code too, but is everywhere as the host of COM servers.
        "dllhost" => name,
        _ if LIVING_OFF.binary_search(&name).is_ok() => "lol",
        _ => "oth",
    }
}

/// Programs of Windows that are known to run, fetch or hide what an attacker brings.
#[rustfmt::skip]
pub static LIVING_OFF: &[&str] = &[
    "appvlp", "at", "atbroker", "bash", "bitsadmin", "certreq", "certutil", "cmstp", "computerdefaults", "control",
    "csc", "desktopimgdownldr", "diskshadow", "dnscmd", "dxcap", "esentutl", "eventvwr", "expand", "extexport",
    "extrac32", "findstr", "fodhelper", "forfiles", "ftp", "gpscript", "hh", "ieexec", "infdefaultinstall",
    "installutil", "jsc", "makecab", "mavinject", "microsoft.workflow.compiler", "msbuild", "msdt", "msiexec",
    "msxsl", "odbcconf", "pcalua", "presentationhost", "print", "rasautou", "regasm", "register-cimprovider",
    "regsvcs", "regsvr32", "replace", "rundll32", "scriptrunner", "sdclt", "sqldumper", "syncappvpublishingserver",
    "te", "tttracer", "vbc", "verclsid", "winrm", "winrs", "wmic", "wsreset", "wuauclt", "xwizard",
];

/// Tools for administration and for looking around.
#[rustfmt::skip]
pub static ADMIN_TOOLS: &[&str] = &[
    "arp", "at", "attrib", "auditpol", "bcdedit", "cipher", "cmdkey", "csvde", "dsquery", "fltmc", "gpresult",
    "hostname", "icacls", "ipconfig", "klist", "ldifde", "nbtstat", "net", "net1", "netsh", "netstat", "nltest",
    "nslookup", "ntdsutil", "procdump", "procdump64", "psexec", "psexesvc", "query", "quser", "reg", "regedit",
    "route", "runas", "sc", "schtasks", "setspn", "systeminfo", "takeown", "taskkill", "tasklist", "vssadmin",
    "wbadmin", "wevtutil", "whoami",
];

/// Programs that keep their names.
#[rustfmt::skip]
pub static PROGRAMS: &[&str] = &[
    "aitstatic", "appvlp", "arp", "at", "atbroker", "attrib", "audiodg", "auditpol", "backgroundtaskhost", "bash",
    "bcdedit", "bitsadmin", "browser_broker", "calc", "certreq", "certutil", "choice", "chrome", "cipher", "cleanmgr",
    "clip", "cmd", "cmdkey", "cmstp", "compattelrunner", "computerdefaults", "conhost", "consent", "control", "csc",
    "cscript", "csrss", "csvde", "ctfmon", "curl", "cvtres", "dashost", "defrag", "desktopimgdownldr", "devicecensus",
    "dfsrs", "dfssvc", "diskshadow", "dism", "dismhost", "dllhost", "dns", "dnscmd", "driverquery", "drvinst",
    "dsquery", "dwm", "dxcap", "esentutl", "eventvwr", "excel", "expand", "explorer", "extexport", "extrac32", "fc",
    "find", "findstr", "firefox", "fltmc", "fodhelper", "fontdrvhost", "forfiles", "ftp", "googleupdate", "gpresult",
    "gpscript", "gpupdate", "hh", "hostname", "icacls", "ie4uinit", "ieexec", "iexplore", "infdefaultinstall",
    "installutil", "ipconfig", "ismserv", "jsc", "klist", "ldifde", "logonui", "lsaiso", "lsass", "lsm", "makecab",
    "mavinject", "mcbuilder", "microsoft.activedirectory.webservices", "microsoft.workflow.compiler", "microsoftedge",
    "microsoftedgecp", "microsoftedgeupdate", "mmc", "mobsync", "monitoringhost", "mousocoreworker", "mpcmdrun",
    "mpsigstub", "mrt", "msaccess", "msbuild", "mscorsvw", "msdt", "msdtc", "msedge", "msfeedssync", "mshta",
    "msiexec", "msmpeng", "mspaint", "mspub", "mstsc", "msxsl", "nbtstat", "net", "net1", "netsh", "netstat", "ngen",
    "ngentask", "nissrv", "nltest", "notepad", "nslookup", "ntdsutil", "ntoskrnl", "odbcconf", "officeclicktorun",
    "onedrive", "onenote", "opera", "outlook", "pcalua", "ping", "powercfg", "powerpnt", "powershell",
    "powershell_ise", "presentationhost", "print", "procdump", "procdump64", "psexec", "psexesvc", "pwsh", "query",
    "quser", "rasautou", "rdpclip", "reg", "regasm", "regedit", "register-cimprovider", "registry", "regsvcs",
    "regsvr32", "replace", "robocopy", "route", "runas", "rundll32", "runtimebroker", "sc", "schtasks", "scrcons",
    "scriptrunner", "sdclt", "sdiagnhost", "searchfilterhost", "searchindexer", "searchprotocolhost", "searchui",
    "secinit", "securityhealthservice", "services", "setspn", "settingsynchost", "setup", "sgrmbroker",
    "shellexperiencehost", "sihclient", "sihost", "slui", "smartscreen", "smss", "splwow64", "spoolsv",
    "sppextcomobj", "sppsvc", "sqldumper", "sqlservr", "startmenuexperiencehost", "svchost",
    "syncappvpublishingserver", "system", "systeminfo", "systemsettings", "takeown", "taskeng", "taskhost",
    "taskhostw", "taskkill", "tasklist", "taskmgr", "te", "tiworker", "trustedinstaller", "tstheme", "tttracer",
    "tzsync", "unsecapp", "userinit", "useroobebroker", "usoclient", "vbc", "vds", "verclsid", "visio", "vssadmin",
    "vssvc", "w32tm", "w3wp", "waasmedicagent", "wbadmin", "werfault", "werfaultsecure", "wermgr", "wevtutil",
    "where", "whoami", "wininit", "winlogon", "winrm", "winrs", "winrshost", "winword", "wlms", "wmiadap", "wmiapsrv",
    "wmic", "wmiprvse", "wordpad", "wscript", "wsmprovhost", "wsqmcons", "wsreset", "wuauclt", "wudfhost", "xcopy",
    "xwizard",
];

/// Libraries whose presence tells what a program is about to do.
#[rustfmt::skip]
pub static LIBRARIES: &[&str] = &[
    "amsi.dll", "audioses.dll", "bcrypt.dll", "cimwin32.dll", "clr.dll", "clrjit.dll", "combase.dll", "comsvcs.dll",
    "credui.dll", "cryptdll.dll", "cscapi.dll", "dbgcore.dll", "dbghelp.dll", "dpapi.dll", "dsquery.dll",
    "fastprox.dll", "hid.dll", "iertutil.dll", "jscript.dll", "jscript9.dll", "kerberos.dll", "logoncli.dll",
    "mmdevapi.dll", "mscoree.dll", "mscoreei.dll", "mscorlib.ni.dll", "mstscax.dll", "msv1_0.dll", "msxml3.dll",
    "msxml6.dll", "ncrypt.dll", "netapi32.dll", "ntdsapi.dll", "pcwum.dll", "rasapi32.dll", "samlib.dll",
    "samsrv.dll", "scrobj.dll", "scrrun.dll", "srvcli.dll", "system.management.automation.dll",
    "system.management.automation.ni.dll", "taskschd.dll", "urlmon.dll", "vaultcli.dll", "vbe7.dll", "vbscript.dll",
    "wbemcomn.dll", "wbemprox.dll", "winhttp.dll", "wininet.dll", "winmm.dll", "wkscli.dll", "wlanapi.dll",
    "wldap32.dll", "wmiutils.dll", "wshom.ocx", "wsmauto.dll", "wsmsvc.dll",
];

/// What kind of address this is.
pub fn address_class(address: &str) -> &'static str {
    use std::net::IpAddr;
    match address.parse::<IpAddr>() {
        Err(_) => "none",
        Ok(IpAddr::V4(a)) if a.is_loopback() => "loop",
        Ok(IpAddr::V4(a)) if a.is_private() || a.is_link_local() => "priv",
        Ok(IpAddr::V4(a)) if a.is_multicast() || a.is_broadcast() || a.octets()[3] == 255 => "mcast",
        Ok(IpAddr::V4(a)) if a.is_unspecified() => "none",
        Ok(IpAddr::V4(_)) => "pub",
        Ok(IpAddr::V6(a)) => match a.to_ipv4_mapped() {
            Some(mapped) => address_class(&mapped.to_string()),
            None if a.is_loopback() => "loop",
            None if a.is_unicast_link_local() || a.is_unique_local() => "priv",
            None if a.is_multicast() => "mcast",
            None if a.is_unspecified() => "none",
            None => "pub",
        },
    }
}

/// A well-known port by its number, others by their range.
pub fn port_class(port: u16) -> &'static str {
    match port {
        22 => "22",
        53 => "53",
        67 | 68 => "dhcp",
        80 => "80",
        88 => "88",
        123 => "123",
        135 => "135",
        137 | 138 => "netbios",
        139 => "139",
        389 | 636 | 3268 => "ldap",
        443 => "443",
        445 => "445",
        464 => "464",
        1900 | 5353 | 5355 => "discovery",
        3389 => "3389",
        5985 | 5986 | 47001 => "winrm",
        9389 => "9389",
        0..1024 => "low",
        1024..49152 => "mid",
        _ => "hi",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted() {
        for list in [LIVING_OFF, ADMIN_TOOLS, PROGRAMS, LIBRARIES] {
            for pair in list.windows(2) {
                assert!(pair[0] < pair[1], "{} before {}", pair[0], pair[1]);
            }
        }
        for name in LIVING_OFF.iter().chain(ADMIN_TOOLS) {
            assert!(PROGRAMS.binary_search(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn places() {
        for (path, want) in [
            (r"c:\windows\system32\cmd.exe", "sys32"),
            (r"\device\harddiskvolume2\windows\system32\cmd.exe", "sys32"),
            (r"\??\c:\windows\system32\conhost.exe", "sys32"),
            (r"c:\users\ann\appdata\local\temp\x.exe", "temp"),
            (r"\\server\share\x.exe", "unc"),
            (r"c:\windows\system32\tasks\updater", "tasks"),
            (r"c:\windows\system32\taskschd.dll", "sys32"),
            (r"c:\windows\system32\spool\drivers\x64\3\x.dll", "spool"),
            (r"c:\windows\system32\spoolsv.exe", "sys32"),
            (r"c:\program files (x86)\a\b.dll", "progf"),
            (r"c:\program files\windowsapps\microsoft.photos\a.dll", "apps"),
            (r"c:\program files of mine\a.dll", "otherdir"),
            (r"c:\users\ann\program files\a.dll", "users"),
            (r"c:\users\ann\appdata\local\microsoft\windows\inetcache\a.exe", "applocalms"),
            (r"c:\users\ann\appdata\local\microsoft\onedrive\onedrive.exe", "apphome"),
            (r"c:\users\ann\appdata\local\microsoft\onedrive.exe", "applocalms"),
            (r"c:\users\ann\appdata\roaming\microsoft\windows\start menu\programs\startup\a.lnk", "startup"),
            (r"c:\programdata\microsoft\windows\start menu\programs\startup\a.lnk", "startup"),
            (r"c:\x.exe", "root"),
            (r"d:\tools\x.exe", "otherdir"),
            ("x.exe", "nopath"),
            ("é:", "nopath"),
        ] {
            assert_eq!(place_of(path).name, want, "{path}");
        }
    }

    #[test]
    fn unlisted_programs_have_no_name() {
        let p = |image| program(image).name;
        assert_eq!(p(r"c:\windows\system32\whoami.exe"), "whoami");
        assert_eq!(p(r"c:\users\ann\whoami.exe"), "@users");
        assert_eq!(p(r"c:\windows\system32\evil.exe"), "@windows");
        assert_eq!(p("cmd.exe"), "cmd");
        assert_eq!(p("<unknown process>"), "unk");
    }
}
