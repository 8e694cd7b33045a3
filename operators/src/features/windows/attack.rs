//! The ATT&CK techniques that the built-in analyzer reports of Windows endpoints.

use crate::graph::Technique;

macro_rules! techniques {
    ($($name:ident = $id:literal, $did:literal;)+) => {
        $(pub static $name: Technique = Technique { id: $id, did: $did };)+
    };
}

techniques! {
    LSASS = "T1003.001", "opened LSASS in a way that lets it read credentials";
    MINIDUMP = "T1003.001", "asked for a memory dump that can hold credentials";
    HIVES = "T1003.002", "copied registry hives that hold credentials";
    DUMP_FILE = "T1003.001", "wrote a memory dump";
    KERBEROS = "T1558", "spoke Kerberos itself, which only LSASS does";
    ADMIN_SHARE = "T1021.002", "used an administrative share";
    REMOTE_FILE = "T1021.002", "received a program over the network";
    WINRM = "T1021.006", "was started through Windows Remote Management";
    WMI = "T1047", "ran a command through WMI";
    TASK = "T1053.005", "created or changed a scheduled task";
    INJECT = "T1055", "started a thread in another program";
    INJECT_LIBRARY = "T1055.001", "made another program load a library";
    TAMPER = "T1055.012", "had its image replaced in memory";
    POWERSHELL = "T1059.001", "ran suspicious PowerShell";
    SCRIPT_HOST = "T1059.005", "was told to run script code";
    OBFUSCATED = "T1027", "hid its command in base64";
    CLEAR_LOG = "T1070.001", "touched the event logs";
    NO_LOG = "T1562.002", "changed what the event log records";
    DEFENDER = "T1562.001", "changed the settings of Microsoft Defender";
    FIREWALL = "T1562.004", "changed the firewall";
    AMSI = "T1562.001", "reached for the anti-malware interface";
    DOWNLOAD = "T1105", "fetched a file from elsewhere";
    BITS = "T1197", "used a background transfer job";
    DECODE = "T1140", "decoded a file";
    ACCOUNT = "T1136.001", "created an account or changed a group";
    DISCOVER_USER = "T1033", "asked who is logged on";
    DISCOVER_SYSTEM = "T1082", "asked about the system";
    DISCOVER_NETWORK = "T1016", "asked about the network's set-up";
    DISCOVER_PROCESS = "T1057", "listed processes";
    DISCOVER_DOMAIN = "T1482", "asked about the domain's trusts";
    DISCOVER_ACCOUNT = "T1087", "listed accounts";
    RENAMED = "T1036.003", "runs under a name that is not its own";
    RUN_KEY = "T1547.001", "set a program to start at logon";
    STARTUP = "T1547.001", "put a file where it starts at logon";
    SERVICE = "T1543.003", "set a service's program";
    SERVICE_RUN = "T1569.002", "was started as a service from where users can write";
    WMI_SUBSCRIPTION = "T1546.003", "left a WMI event subscription";
    IFEO = "T1546.012", "set a program to start in place of or beside another";
    COM_HIJACK = "T1546.015", "redirected a COM class to a file";
    UAC = "T1548.002", "changed what an elevated program will start";
    LSA = "T1547.005", "changed what LSASS loads or keeps";
    SIDE_LOAD = "T1574.002", "loaded a system library from a place where it does not belong";
    REFLECTIVE = "T1620", "loaded .NET or PowerShell into a program that has no use for it";
    REGISTRY = "T1112", "stored a command in the registry";
    RUNDLL = "T1218.011", "was told to run code that is not Windows' own";
    MSHTA = "T1218.005", "was told to run code that is not Windows' own";
    REGSVR = "T1218.010", "was told to run code that is not Windows' own";
    CMSTP = "T1218.003", "was told to run code that is not Windows' own";
    INSTALLUTIL = "T1218.004", "was told to run code that is not Windows' own";
    MSIEXEC = "T1218.007", "was told to run code that is not Windows' own";
    REGASM = "T1218.009", "was told to run code that is not Windows' own";
    COMPILED_HELP = "T1218.001", "was told to run code that is not Windows' own";
    CONTROL = "T1218.002", "was told to run code that is not Windows' own";
    MSBUILD = "T1127.001", "was told to run code that is not Windows' own";
    XSL = "T1220", "was told to run code in a style sheet";
    PROXY = "T1218", "was told to run code that is not Windows' own";
    WEB = "T1071.001", "called out to a public address";
    SPY = "T1056", "reached for keyboard, screen, microphone or a password prompt";
    NAMED_PIPE = "T1021.002", "spoke to a service's pipe that its kind has no use for";
    RAW_DISK = "T1006", "read the disk past the file system";
}

/// The technique of a tool that looks around, by the program's name.
pub fn discovery(program: &str) -> Option<&'static Technique> {
    Some(match program {
        "whoami" | "quser" | "query" => &DISCOVER_USER,
        "systeminfo" | "hostname" => &DISCOVER_SYSTEM,
        "ipconfig" | "arp" | "route" | "nbtstat" | "netstat" | "nslookup" => &DISCOVER_NETWORK,
        "tasklist" => &DISCOVER_PROCESS,
        "nltest" | "dsquery" | "setspn" => &DISCOVER_DOMAIN,
        _ => return None,
    })
}

/// The technique of a tool that runs what it is given, by the program's name.
pub fn proxy(program: &str) -> &'static Technique {
    match program {
        "rundll32" => &RUNDLL,
        "mshta" => &MSHTA,
        "regsvr32" => &REGSVR,
        "cmstp" => &CMSTP,
        "installutil" => &INSTALLUTIL,
        "msiexec" => &MSIEXEC,
        "regasm" | "regsvcs" => &REGASM,
        "hh" => &COMPILED_HELP,
        "control" => &CONTROL,
        "msbuild" => &MSBUILD,
        "wmic" | "msxsl" => &XSL,
        _ => &PROXY,
    }
}
