//! Puts an alert into words: which ATT&CK techniques it shows, with what evidence, and why it was raised.
//!
//! Pure: an alert's fields in, two sentences out. The techniques themselves are found in the window's facts
//! and merged by dedup; the table below only names them. An id that it does not know stands for itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use logster_schema::{Alert, AlertRule, time};

/// An ATT&CK technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Technique {
    /// `T1059.001`.
    pub id: &'static str,
    /// Name; of a sub-technique without its parent's.
    pub name: &'static str,
    /// The tactics that it serves, the usual one first.
    pub tactics: &'static str,
}

/// The technique of that id, if the table has it.
pub fn technique(id: &str) -> Option<&'static Technique> {
    TECHNIQUES.binary_search_by(|technique| technique.id.cmp(id)).ok().map(|at| &TECHNIQUES[at])
}

/// Fills `reason` and `ttp_explanation`. `evidence` has a sentence by technique, with or without the id in front.
pub fn enrich(alert: &mut Alert, evidence: &BTreeMap<String, String>) {
    alert.ttp_explanation = explanation(&alert.ttp_techniques, evidence);
    alert.reason = reason(alert);
}

/// One sentence a technique: id, name, tactics, evidence.
fn explanation(techniques: &[String], evidence: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for id in techniques {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(id);
        if let Some(technique) = technique(id) {
            let _ = write!(text, " {} ({})", technique.name, technique.tactics);
        }
        let sentence = evidence.get(id).map_or("", String::as_str);
        let sentence = sentence.strip_prefix(id.as_str()).map_or(sentence, |rest| rest.trim_start_matches([':', ' ']));
        let sentence = sentence.trim_end_matches('.');
        if !sentence.is_empty() {
            let _ = write!(text, ": {sentence}");
        }
        text.push('.');
    }
    text
}

/// Edges and techniques named in the reason.
const NAMED: usize = 2;

/// How sure, over how long, what was seen, what it amounts to, where it went.
fn reason(alert: &Alert) -> String {
    let mut text = format!("{}: ", alert.severity.name());
    let mut rules: Vec<&AlertRule> = alert.rules.iter().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.level));
    if let Some((first, rest)) = rules.split_first() {
        let _ = write!(text, "rule \"{}\" ({})", first.title, first.level);
        if !rest.is_empty() {
            let _ = write!(text, " and {} more rule{}", rest.len(), if rest.len() == 1 { "" } else { "s" });
        }
        text.push_str("; ");
    }
    let _ = write!(text, "attack probability {:.2}", alert.attack_prob);
    let windows = alert.detection_count;
    let _ = match windows {
        1 => write!(text, " in the window ending {}", time::format(alert.last_seen)),
        _ => write!(text, " in {windows} windows up to {}", time::format(alert.last_seen)),
    };
    for edge in alert.key_edges.iter().take(NAMED) {
        let _ = write!(text, "; {}", edge.sentence.trim_end_matches('.'));
    }
    let names: Vec<String> = alert
        .ttp_techniques
        .iter()
        .take(NAMED)
        .map(|id| technique(id).map_or(id.clone(), |technique| format!("{} ({id})", technique.name)))
        .collect();
    if !names.is_empty() {
        let _ = write!(text, "; {}", names.join(", "));
        let more = alert.ttp_techniques.len() - names.len();
        if more > 0 {
            let _ = write!(text, " and {more} more technique{}", if more == 1 { "" } else { "s" });
        }
    }
    let lateral: Vec<_> = alert.related_endpoints.iter().filter(|related| related.lateral_movement).collect();
    match lateral.as_slice() {
        [] if !alert.related_endpoints.is_empty() => {
            let _ = write!(text, "; {} alerted at about the same time", hosts(alert.related_endpoints.len()));
        }
        [] => {}
        [first, rest @ ..] => {
            let _ = write!(text, "; {}", first.evidence);
            if !rest.is_empty() {
                let _ = write!(text, ", and contacts with {} more", hosts(rest.len()));
            }
        }
    }
    text.push('.');
    text
}

fn hosts(n: usize) -> String {
    format!("{n} endpoint{}", if n == 1 { "" } else { "s" })
}

macro_rules! techniques {
    ($($id:literal $name:literal $tactics:literal)+) => {
        /// What Windows and Linux endpoints show of ATT&CK, by id.
        pub const TECHNIQUES: &[Technique] = &[$(Technique { id: $id, name: $name, tactics: $tactics }),+];
    };
}

techniques! {
    "T1003" "OS Credential Dumping" "Credential Access"
    "T1003.001" "LSASS Memory" "Credential Access"
    "T1003.002" "Security Account Manager" "Credential Access"
    "T1003.003" "NTDS" "Credential Access"
    "T1003.004" "LSA Secrets" "Credential Access"
    "T1003.006" "DCSync" "Credential Access"
    "T1003.007" "Proc Filesystem" "Credential Access"
    "T1003.008" "/etc/passwd and /etc/shadow" "Credential Access"
    "T1005" "Data from Local System" "Collection"
    "T1007" "System Service Discovery" "Discovery"
    "T1012" "Query Registry" "Discovery"
    "T1014" "Rootkit" "Defense Evasion"
    "T1016" "System Network Configuration Discovery" "Discovery"
    "T1018" "Remote System Discovery" "Discovery"
    "T1020" "Automated Exfiltration" "Exfiltration"
    "T1021" "Remote Services" "Lateral Movement"
    "T1021.001" "Remote Desktop Protocol" "Lateral Movement"
    "T1021.002" "SMB/Windows Admin Shares" "Lateral Movement"
    "T1021.003" "Distributed Component Object Model" "Lateral Movement"
    "T1021.004" "SSH" "Lateral Movement"
    "T1021.006" "Windows Remote Management" "Lateral Movement"
    "T1027" "Obfuscated Files or Information" "Defense Evasion"
    "T1027.004" "Compile After Delivery" "Defense Evasion"
    "T1027.010" "Command Obfuscation" "Defense Evasion"
    "T1033" "System Owner/User Discovery" "Discovery"
    "T1036" "Masquerading" "Defense Evasion"
    "T1036.003" "Rename Legitimate Utilities" "Defense Evasion"
    "T1036.005" "Match Legitimate Name or Location" "Defense Evasion"
    "T1037.004" "RC Scripts" "Persistence, Privilege Escalation"
    "T1040" "Network Sniffing" "Credential Access, Discovery"
    "T1041" "Exfiltration Over C2 Channel" "Exfiltration"
    "T1046" "Network Service Discovery" "Discovery"
    "T1047" "Windows Management Instrumentation" "Execution"
    "T1048" "Exfiltration Over Alternative Protocol" "Exfiltration"
    "T1048.003" "Exfiltration Over Unencrypted Non-C2 Protocol" "Exfiltration"
    "T1049" "System Network Connections Discovery" "Discovery"
    "T1053" "Scheduled Task/Job" "Execution, Persistence, Privilege Escalation"
    "T1053.002" "At" "Execution, Persistence, Privilege Escalation"
    "T1053.003" "Cron" "Execution, Persistence, Privilege Escalation"
    "T1053.005" "Scheduled Task" "Execution, Persistence, Privilege Escalation"
    "T1053.006" "Systemd Timers" "Execution, Persistence, Privilege Escalation"
    "T1055" "Process Injection" "Defense Evasion, Privilege Escalation"
    "T1055.001" "Dynamic-link Library Injection" "Defense Evasion, Privilege Escalation"
    "T1055.002" "Portable Executable Injection" "Defense Evasion, Privilege Escalation"
    "T1055.008" "Ptrace System Calls" "Defense Evasion, Privilege Escalation"
    "T1055.009" "Proc Memory" "Defense Evasion, Privilege Escalation"
    "T1055.012" "Process Hollowing" "Defense Evasion, Privilege Escalation"
    "T1056.001" "Keylogging" "Collection, Credential Access"
    "T1057" "Process Discovery" "Discovery"
    "T1059" "Command and Scripting Interpreter" "Execution"
    "T1059.001" "PowerShell" "Execution"
    "T1059.003" "Windows Command Shell" "Execution"
    "T1059.004" "Unix Shell" "Execution"
    "T1059.005" "Visual Basic" "Execution"
    "T1059.006" "Python" "Execution"
    "T1059.007" "JavaScript" "Execution"
    "T1068" "Exploitation for Privilege Escalation" "Privilege Escalation"
    "T1069.001" "Local Groups" "Discovery"
    "T1069.002" "Domain Groups" "Discovery"
    "T1070" "Indicator Removal" "Defense Evasion"
    "T1070.001" "Clear Windows Event Logs" "Defense Evasion"
    "T1070.002" "Clear Linux or Mac System Logs" "Defense Evasion"
    "T1070.003" "Clear Command History" "Defense Evasion"
    "T1070.004" "File Deletion" "Defense Evasion"
    "T1070.006" "Timestomp" "Defense Evasion"
    "T1071" "Application Layer Protocol" "Command and Control"
    "T1071.001" "Web Protocols" "Command and Control"
    "T1071.004" "DNS" "Command and Control"
    "T1074.001" "Local Data Staging" "Collection"
    "T1078" "Valid Accounts" "Initial Access, Persistence, Privilege Escalation, Defense Evasion"
    "T1078.003" "Local Accounts" "Initial Access, Persistence, Privilege Escalation, Defense Evasion"
    "T1082" "System Information Discovery" "Discovery"
    "T1083" "File and Directory Discovery" "Discovery"
    "T1087.001" "Local Account Discovery" "Discovery"
    "T1087.002" "Domain Account Discovery" "Discovery"
    "T1090" "Proxy" "Command and Control"
    "T1095" "Non-Application Layer Protocol" "Command and Control"
    "T1098" "Account Manipulation" "Persistence, Privilege Escalation"
    "T1098.004" "SSH Authorized Keys" "Persistence, Privilege Escalation"
    "T1102" "Web Service" "Command and Control"
    "T1105" "Ingress Tool Transfer" "Command and Control"
    "T1106" "Native API" "Execution"
    "T1110" "Brute Force" "Credential Access"
    "T1112" "Modify Registry" "Defense Evasion"
    "T1113" "Screen Capture" "Collection"
    "T1115" "Clipboard Data" "Collection"
    "T1123" "Audio Capture" "Collection"
    "T1127.001" "MSBuild" "Defense Evasion"
    "T1132.001" "Standard Encoding" "Command and Control"
    "T1134" "Access Token Manipulation" "Defense Evasion, Privilege Escalation"
    "T1134.001" "Token Impersonation/Theft" "Defense Evasion, Privilege Escalation"
    "T1135" "Network Share Discovery" "Discovery"
    "T1136.001" "Create Local Account" "Persistence"
    "T1136.002" "Create Domain Account" "Persistence"
    "T1140" "Deobfuscate/Decode Files or Information" "Defense Evasion"
    "T1176" "Browser Extensions" "Persistence"
    "T1187" "Forced Authentication" "Credential Access"
    "T1190" "Exploit Public-Facing Application" "Initial Access"
    "T1197" "BITS Jobs" "Defense Evasion, Persistence"
    "T1201" "Password Policy Discovery" "Discovery"
    "T1202" "Indirect Command Execution" "Defense Evasion"
    "T1203" "Exploitation for Client Execution" "Execution"
    "T1204.002" "Malicious File" "Execution"
    "T1207" "Rogue Domain Controller" "Defense Evasion"
    "T1210" "Exploitation of Remote Services" "Lateral Movement"
    "T1216" "System Script Proxy Execution" "Defense Evasion"
    "T1218" "System Binary Proxy Execution" "Defense Evasion"
    "T1218.001" "Compiled HTML File" "Defense Evasion"
    "T1218.003" "CMSTP" "Defense Evasion"
    "T1218.004" "InstallUtil" "Defense Evasion"
    "T1218.005" "Mshta" "Defense Evasion"
    "T1218.007" "Msiexec" "Defense Evasion"
    "T1218.009" "Regsvcs/Regasm" "Defense Evasion"
    "T1218.010" "Regsvr32" "Defense Evasion"
    "T1218.011" "Rundll32" "Defense Evasion"
    "T1219" "Remote Access Tools" "Command and Control"
    "T1220" "XSL Script Processing" "Defense Evasion"
    "T1222.001" "Windows File Permissions Modification" "Defense Evasion"
    "T1222.002" "Linux File Permissions Modification" "Defense Evasion"
    "T1482" "Domain Trust Discovery" "Discovery"
    "T1485" "Data Destruction" "Impact"
    "T1486" "Data Encrypted for Impact" "Impact"
    "T1489" "Service Stop" "Impact"
    "T1490" "Inhibit System Recovery" "Impact"
    "T1496" "Resource Hijacking" "Impact"
    "T1505.003" "Web Shell" "Persistence"
    "T1518.001" "Security Software Discovery" "Discovery"
    "T1529" "System Shutdown/Reboot" "Impact"
    "T1531" "Account Access Removal" "Impact"
    "T1542.003" "Bootkit" "Persistence, Defense Evasion"
    "T1543.002" "Systemd Service" "Persistence, Privilege Escalation"
    "T1543.003" "Windows Service" "Persistence, Privilege Escalation"
    "T1546.003" "WMI Event Subscription" "Persistence, Privilege Escalation"
    "T1546.004" "Unix Shell Configuration Modification" "Persistence, Privilege Escalation"
    "T1546.008" "Accessibility Features" "Persistence, Privilege Escalation"
    "T1546.010" "AppInit DLLs" "Persistence, Privilege Escalation"
    "T1546.012" "Image File Execution Options Injection" "Persistence, Privilege Escalation"
    "T1546.013" "PowerShell Profile" "Persistence, Privilege Escalation"
    "T1546.015" "Component Object Model Hijacking" "Persistence, Privilege Escalation"
    "T1547.001" "Registry Run Keys / Startup Folder" "Persistence, Privilege Escalation"
    "T1547.004" "Winlogon Helper DLL" "Persistence, Privilege Escalation"
    "T1547.005" "Security Support Provider" "Persistence, Privilege Escalation"
    "T1547.006" "Kernel Modules and Extensions" "Persistence, Privilege Escalation"
    "T1547.009" "Shortcut Modification" "Persistence, Privilege Escalation"
    "T1548.001" "Setuid and Setgid" "Privilege Escalation, Defense Evasion"
    "T1548.002" "Bypass User Account Control" "Privilege Escalation, Defense Evasion"
    "T1548.003" "Sudo and Sudo Caching" "Privilege Escalation, Defense Evasion"
    "T1550.002" "Pass the Hash" "Lateral Movement, Defense Evasion"
    "T1550.003" "Pass the Ticket" "Lateral Movement, Defense Evasion"
    "T1552" "Unsecured Credentials" "Credential Access"
    "T1552.001" "Credentials In Files" "Credential Access"
    "T1552.002" "Credentials in Registry" "Credential Access"
    "T1552.003" "Shell History" "Credential Access"
    "T1552.004" "Private Keys" "Credential Access"
    "T1553.004" "Install Root Certificate" "Defense Evasion"
    "T1555" "Credentials from Password Stores" "Credential Access"
    "T1555.003" "Credentials from Web Browsers" "Credential Access"
    "T1555.004" "Windows Credential Manager" "Credential Access"
    "T1556.003" "Pluggable Authentication Modules" "Credential Access, Persistence"
    "T1557" "Adversary-in-the-Middle" "Credential Access, Collection"
    "T1558.003" "Kerberoasting" "Credential Access"
    "T1558.004" "AS-REP Roasting" "Credential Access"
    "T1559" "Inter-Process Communication" "Execution"
    "T1560.001" "Archive via Utility" "Collection"
    "T1562.001" "Disable or Modify Tools" "Defense Evasion"
    "T1562.002" "Disable Windows Event Logging" "Defense Evasion"
    "T1562.004" "Disable or Modify System Firewall" "Defense Evasion"
    "T1562.006" "Indicator Blocking" "Defense Evasion"
    "T1562.012" "Disable or Modify Linux Audit System" "Defense Evasion"
    "T1563.002" "RDP Hijacking" "Lateral Movement"
    "T1564.001" "Hidden Files and Directories" "Defense Evasion"
    "T1564.003" "Hidden Window" "Defense Evasion"
    "T1564.004" "NTFS File Attributes" "Defense Evasion"
    "T1566.001" "Spearphishing Attachment" "Initial Access"
    "T1567" "Exfiltration Over Web Service" "Exfiltration"
    "T1567.002" "Exfiltration to Cloud Storage" "Exfiltration"
    "T1569.002" "Service Execution" "Execution"
    "T1570" "Lateral Tool Transfer" "Lateral Movement"
    "T1571" "Non-Standard Port" "Command and Control"
    "T1572" "Protocol Tunneling" "Command and Control"
    "T1573" "Encrypted Channel" "Command and Control"
    "T1574.001" "DLL Hijacking" "Persistence, Privilege Escalation, Defense Evasion"
    "T1574.002" "DLL Side-Loading" "Persistence, Privilege Escalation, Defense Evasion"
    "T1574.006" "Dynamic Linker Hijacking" "Persistence, Privilege Escalation, Defense Evasion"
    "T1609" "Container Administration Command" "Execution"
    "T1610" "Deploy Container" "Execution, Defense Evasion"
    "T1611" "Escape to Host" "Privilege Escalation"
    "T1613" "Container and Resource Discovery" "Discovery"
    "T1615" "Group Policy Discovery" "Discovery"
    "T1620" "Reflective Code Loading" "Defense Evasion"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_complete() {
        assert!(TECHNIQUES.is_sorted_by(|a, b| a.id < b.id), "binary search needs it");
        for t in TECHNIQUES {
            let digits = t.id.strip_prefix('T').unwrap().replace('.', "");
            assert!(matches!(digits.len(), 4 | 7) && digits.bytes().all(|b| b.is_ascii_digit()), "{}", t.id);
            assert!(!t.name.is_empty() && !t.tactics.is_empty());
        }
        assert_eq!(technique("T1059.001").map(|t| t.name), Some("PowerShell"));
        assert_eq!(technique("T9999"), None);
    }

    #[test]
    fn one_sentence_a_technique() {
        let ids = ["T1021.002", "T1059.001", "T9999"].map(str::to_owned);
        let evidence = [
            ("T1021.002".to_owned(), "T1021.002: net.exe reached \\\\db01\\admin$".to_owned()),
            ("T1059.001".to_owned(), "powershell.exe -enc.".to_owned()),
        ];
        assert_eq!(
            explanation(&ids, &evidence.into()),
            "T1021.002 SMB/Windows Admin Shares (Lateral Movement): net.exe reached \\\\db01\\admin$. \
             T1059.001 PowerShell (Execution): powershell.exe -enc. T9999."
        );
        assert_eq!(explanation(&[], &BTreeMap::new()), "");
    }
}
