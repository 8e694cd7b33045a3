//! Where a file lies and what it holds, as closed classes: names of users, hosts and projects do not get through.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Class of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Part of the file system, from [`AREAS`] or [`HOMES`]; `rel` where the path is relative.
    pub area: &'static str,
    /// Outside a home (there it is the custom), the name starts with a dot; where anyone may write, also that of
    /// a directory on the way.
    pub hidden: bool,
    /// Class of the extension.
    pub extension: &'static str,
}

impl Place {
    /// The class of `path`.
    pub fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path);
        let home = path.strip_prefix("/root").filter(|r| r.is_empty() || r.starts_with('/')).map(|rest| (true, rest));
        let home = home.or_else(|| {
            let rest = path.strip_prefix("/home/")?;
            Some((false, rest.find('/').map_or("", |at| &rest[at..])))
        });
        let area = match home {
            Some((root, rest)) => {
                let row = HOMES.iter().find(|(prefix, ..)| rest.starts_with(prefix));
                row.map_or(if root { "root" } else { "home" }, |row| if root { row.2 } else { row.1 })
            }
            None if path.starts_with('/') => area(path),
            None => "rel",
        };
        let place = Self { area, hidden: false, extension: extension(name) };
        let hidden = match home {
            Some(_) => false,
            None if place.is_scratch() => path.split('/').any(is_hidden),
            None => is_hidden(name),
        };
        Self { hidden, ..place }
    }

    /// The directory of the system's own programs.
    pub fn is_system_bin(&self) -> bool {
        matches!(self.area, "/usr/bin" | "/usr/sbin" | "/usr/lib" | "/usr/libexec") && !self.hidden
    }

    /// Anyone may write here: where droppers land.
    pub fn is_scratch(&self) -> bool {
        matches!(self.area, "/tmp" | "/var/tmp" | "/dev/shm" | "/run/user")
    }

    /// Holds secrets or decides who may log in.
    pub fn is_sensitive(&self) -> bool {
        matches!(
            self.area,
            "/etc/shadow"
                | "/etc/sudoers"
                | "/etc/ssh/key"
                | "H.ssh"
                | "root.H.ssh"
                | "H.cloud"
                | "root.H.cloud"
                | "H.cred"
                | "root.H.cred"
                | "H.gpg"
                | "root.H.gpg"
                | "H.hist"
                | "root.H.hist"
                | "/proc/#/mem"
                | "/proc/#/environ"
        )
    }

    /// For tokens: area and whether hidden.
    pub fn token(&self) -> String {
        if self.hidden { format!("{}!hid", self.area) } else { self.area.to_owned() }
    }
}

/// Prefixes below a home directory: class for a person's, class for root's.
const HOMES: &[(&str, &str, &str)] = &[
    ("/.ssh", "H.ssh", "root.H.ssh"),
    ("/.aws", "H.cloud", "root.H.cloud"),
    ("/.kube", "H.cloud", "root.H.cloud"),
    ("/.azure", "H.cloud", "root.H.cloud"),
    ("/.config/gcloud", "H.cloud", "root.H.cloud"),
    ("/.gnupg", "H.gpg", "root.H.gpg"),
    ("/.bash_history", "H.hist", "root.H.hist"),
    ("/.zsh_history", "H.hist", "root.H.hist"),
    ("/.python_history", "H.hist", "root.H.hist"),
    ("/.mysql_history", "H.hist", "root.H.hist"),
    ("/.psql_history", "H.hist", "root.H.hist"),
    ("/.pgpass", "H.cred", "root.H.cred"),
    ("/.my.cnf", "H.cred", "root.H.cred"),
    ("/.netrc", "H.cred", "root.H.cred"),
    ("/.git-credentials", "H.cred", "root.H.cred"),
    ("/.docker", "H.cred", "root.H.cred"),
    ("/.bashrc", "H.profile", "root.H.profile"),
    ("/.profile", "H.profile", "root.H.profile"),
    ("/.bash_profile", "H.profile", "root.H.profile"),
    ("/.bash_login", "H.profile", "root.H.profile"),
    ("/.bash_logout", "H.profile", "root.H.profile"),
    ("/.zshrc", "H.profile", "root.H.profile"),
    ("/.config/systemd", "H.units", "root.H.units"),
    ("/.config/autostart", "H.units", "root.H.units"),
    ("/.config", "H.config", "root.H.config"),
    ("/.cache", "H.cache", "root.H.cache"),
    ("/.local", "H.local", "root.H.local"),
    ("/.", "H.dot", "root.H.dot"),
];

/// Prefixes and their class. The first that fits wins, so longer ones stand before shorter ones.
const AREAS: &[(&str, &str)] = &[
    ("/usr/lib/systemd/system", "/etc/systemd"),
    ("/usr/lib/locale", "/usr/share"),
    ("/usr/libexec", "/usr/libexec"),
    ("/usr/lib/cgi-bin", "/var/www"),
    ("/usr/lib", "/usr/lib"),
    ("/usr/bin", "/usr/bin"),
    ("/usr/sbin", "/usr/sbin"),
    ("/usr/local/bin", "/usr/local/bin"),
    ("/usr/local/sbin", "/usr/local/bin"),
    ("/usr/local", "/usr/local"),
    ("/usr/share", "/usr/share"),
    ("/usr/include", "/usr/include"),
    ("/usr", "/usr"),
    ("/lib/systemd/system", "/etc/systemd"),
    ("/lib", "/usr/lib"),
    ("/bin", "/usr/bin"),
    ("/sbin", "/usr/sbin"),
    ("/etc/passwd", "/etc/passwd"),
    ("/etc/group", "/etc/passwd"),
    ("/etc/shadow", "/etc/shadow"),
    ("/etc/gshadow", "/etc/shadow"),
    ("/etc/sudoers", "/etc/sudoers"),
    ("/etc/ssh/ssh_host", "/etc/ssh/key"),
    ("/etc/ssh", "/etc/ssh"),
    ("/etc/cron", "/etc/cron"),
    ("/etc/anacrontab", "/etc/cron"),
    ("/etc/ld.so.preload", "/etc/ld.so.preload"),
    ("/etc/ld.so", "/etc/ld.so"),
    ("/etc/pam.d", "/etc/pam.d"),
    ("/etc/security", "/etc/security"),
    ("/etc/audit", "/etc/audit"),
    ("/etc/systemd", "/etc/systemd"),
    ("/etc/profile", "/etc/profile"),
    ("/etc/bash", "/etc/profile"),
    ("/etc/environment", "/etc/profile"),
    ("/etc/update-motd.d", "/etc/motd"),
    ("/etc/init", "/etc/init"),
    ("/etc/rc", "/etc/init"),
    ("/etc/hosts", "/etc/hosts"),
    ("/etc/resolv", "/etc/hosts"),
    ("/etc/nsswitch", "/etc/hosts"),
    ("/etc/ssl", "/etc/ssl"),
    ("/etc/pki", "/etc/ssl"),
    ("/etc/apt", "/etc/apt"),
    ("/etc/yum", "/etc/apt"),
    ("/etc/dnf", "/etc/apt"),
    ("/etc/dpkg", "/etc/apt"),
    ("/etc/localtime", "/usr/share"),
    ("/etc", "/etc"),
    ("/proc/self/mem", "/proc/#/mem"),
    ("/proc/self", "/proc/self"),
    ("/proc/thread-self", "/proc/self"),
    ("/proc/sys", "/proc/sys"),
    ("/proc/net", "/proc/net"),
    ("/proc", "/proc"),
    ("/sys", "/sys"),
    ("/dev/shm", "/dev/shm"),
    ("/dev/tcp", "/dev/tcp"),
    ("/dev/udp", "/dev/tcp"),
    ("/dev/pts", "/dev/tty"),
    ("/dev/tty", "/dev/tty"),
    ("/dev/null", "/dev/null"),
    ("/dev/mem", "/dev/disk"),
    ("/dev/sd", "/dev/disk"),
    ("/dev/vd", "/dev/disk"),
    ("/dev/nvme", "/dev/disk"),
    ("/dev", "/dev"),
    ("/tmp/tmp.", "/tmp/mktemp"),
    ("/tmp", "/tmp"),
    ("/var/tmp", "/var/tmp"),
    ("/var/spool/cron", "/etc/cron"),
    ("/var/spool", "/var/spool"),
    ("/var/log/audit", "/var/log/audit"),
    ("/var/log/wtmp", "/var/log/login"),
    ("/var/log/btmp", "/var/log/login"),
    ("/var/log/lastlog", "/var/log/login"),
    ("/var/run/utmp", "/var/log/login"),
    ("/run/utmp", "/var/log/login"),
    ("/var/log/auth", "/var/log/auth"),
    ("/var/log/secure", "/var/log/auth"),
    ("/var/log/journal", "/var/log/journal"),
    ("/var/log", "/var/log"),
    ("/var/www", "/var/www"),
    ("/srv/www", "/var/www"),
    ("/var/lib/dpkg", "/var/lib/dpkg"),
    ("/var/lib/rpm", "/var/lib/dpkg"),
    ("/var/lib/apt", "/var/lib/dpkg"),
    ("/var/lib/docker", "/var/lib/docker"),
    ("/var/lib/containerd", "/var/lib/docker"),
    ("/var/lib", "/var/lib"),
    ("/var/cache", "/var/cache"),
    ("/var/backups", "/var/backups"),
    ("/var/mail", "/var/mail"),
    ("/var/run", "/run"),
    ("/var", "/var"),
    ("/run/shm", "/dev/shm"),
    ("/run/user", "/run/user"),
    ("/run", "/run"),
    ("/srv", "/srv"),
    ("/opt", "/opt"),
    ("/boot", "/boot"),
    ("/mnt", "/mnt"),
    ("/media", "/mnt"),
];

fn area(path: &str) -> &'static str {
    // `/proc/4711/...` first: the number stands where a prefix cannot.
    if let Some(rest) = path.strip_prefix("/proc/")
        && rest.starts_with(|c: char| c.is_ascii_digit())
    {
        return match rest.find('/').map(|at| &rest[at..]) {
            Some("/mem") => "/proc/#/mem",
            Some("/environ") => "/proc/#/environ",
            Some("/maps") => "/proc/#/maps",
            _ => "/proc/#",
        };
    }
    AREAS.iter().find(|(prefix, _)| path.starts_with(prefix)).map_or("/other", |(_, area)| area)
}

/// Directories of this kind that every desktop has are not what one hides things in.
fn is_hidden(name: &str) -> bool {
    name.len() > 1
        && name.starts_with('.')
        && name != ".."
        && !matches!(name, ".X11-unix" | ".ICE-unix" | ".font-unix" | ".XIM-unix" | ".Test-unix" | ".X0-lock")
}

fn extension(name: &str) -> &'static str {
    if name.ends_with(".so") || name.contains(".so.") {
        return "lib";
    }
    let Some((stem, extension)) = name.rsplit_once('.') else { return "none" };
    if stem.is_empty() {
        return "none";
    }
    match extension.to_ascii_lowercase().as_str() {
        "sh" | "py" | "pl" | "rb" | "php" | "phtml" | "jsp" | "js" | "lua" | "bash" | "cgi" => "script",
        "conf" | "cfg" | "ini" | "yml" | "yaml" | "json" | "toml" | "env" | "service" | "timer" | "cnf" | "rules" => {
            "config"
        }
        "a" | "o" | "ko" => "lib",
        "gz" | "tgz" | "zip" | "tar" | "xz" | "bz2" | "zst" | "7z" | "deb" | "rpm" => "archive",
        "enc" | "locked" | "gpg" | "crypt" | "encrypted" => "encrypted",
        "key" | "pem" | "pub" | "crt" | "csr" | "p12" => "key",
        "txt" | "md" | "html" | "csv" | "pdf" | "docx" | "xlsx" | "log" => "document",
        "db" | "sqlite" | "sql" | "dump" | "bak" => "data",
        "c" | "h" | "cpp" | "rs" | "go" | "java" => "source",
        "tmp" | "swp" | "new" | "lock" | "pid" | "part" => "temporary",
        _ => "other",
    }
}

/// What kind of address it is: tokens never hold the address itself, and all loopback addresses are one.
pub fn address_class(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(ip) if ip.is_loopback() => "loop",
        IpAddr::V4(ip) if ip.is_unspecified() => "any",
        IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() || carrier_grade(ip) => "private",
        IpAddr::V4(ip) if ip.octets()[0] >= 224 => "multicast",
        IpAddr::V6(ip) if ip.is_loopback() => "loop",
        IpAddr::V6(ip) if ip.is_unspecified() => "any",
        IpAddr::V6(ip) if ip.is_multicast() => "multicast",
        IpAddr::V6(ip) if local_v6(ip) => "private",
        _ => "public",
    }
}

fn carrier_grade(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64
}

fn local_v6(ip: Ipv6Addr) -> bool {
    ip.is_unique_local() || ip.is_unicast_link_local()
}

/// Well-known services by their port, other ports by range.
pub fn port_class(port: u16) -> &'static str {
    match port {
        0 => "0",
        21 => "21",
        22 => "22",
        23 => "23",
        25 | 465 | 587 => "mail",
        53 => "53",
        80 | 8000 | 8080 => "http",
        111 => "111",
        123 => "123",
        389 | 636 => "ldap",
        443 | 8443 => "https",
        445 | 139 => "smb",
        1433 | 1521 | 3306 | 5432 | 6379 | 9200 | 11211 | 27017 => "database",
        9090 | 9100 => "metrics",
        1..1024 => "low",
        1024..32768 => "high",
        _ => "ephemeral",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (path, area, hidden, extension) in [
            ("/usr/bin/ls", "/usr/bin", false, "none"),
            ("/bin/sh", "/usr/bin", false, "none"),
            ("/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib", false, "lib"),
            ("/home/alice/.ssh/id_rsa", "H.ssh", false, "none"),
            ("/home/alice", "home", false, "none"),
            ("/root/.bash_history", "root.H.hist", false, "none"),
            ("/rootkit/x", "/other", false, "none"),
            ("/tmp/.x/run.sh", "/tmp", true, "script"),
            ("/tmp/.X11-unix/X0", "/tmp", false, "none"),
            ("/srv/app/.git/config", "/srv", false, "none"),
            ("/srv/app/.env", "/srv", true, "none"),
            ("/tmp/.hidden", "/tmp", true, "none"),
            ("/dev/shm/.k", "/dev/shm", true, "none"),
            ("/proc/4711/environ", "/proc/#/environ", false, "none"),
            ("/proc/self/mem", "/proc/#/mem", false, "none"),
            ("/etc/shadow-", "/etc/shadow", false, "none"),
            ("notes.txt", "rel", false, "document"),
            ("", "rel", false, "none"),
        ] {
            assert_eq!(Place::of(path), Place { area, hidden, extension }, "{path}");
        }
        assert!(Place::of("/home/bob/.aws/credentials").is_sensitive());
        assert!(!Place::of("/etc/ssh/sshd_config").is_sensitive());
    }

    #[test]
    fn addresses() {
        for (ip, class) in [
            ("127.0.0.1", "loop"),
            ("127.8.0.3", "loop"),
            ("::1", "loop"),
            ("10.1.2.3", "private"),
            ("172.32.0.1", "public"),
            ("100.64.0.1", "private"),
            ("0.0.0.0", "any"),
            ("::", "any"),
            ("fe80::1", "private"),
            ("2001:db8::1", "public"),
            ("239.1.1.1", "multicast"),
        ] {
            assert_eq!(address_class(ip.parse().unwrap()), class, "{ip}");
        }
    }
}
