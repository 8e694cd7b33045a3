//! Which program runs, as a closed class: names from a list of what Debian and RHEL ship, a class for the rest.
//!
//! Names outside the list belong to a site (`/usr/local/bin/backup-helper`) or to one attacker, and a model that
//! knows them knows the lab it was trained in. A listed name outside the system's directories is said to be so:
//! `bash@/dev/shm` is not bash.

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

use super::paths::Place;

/// What a program is for, where that changes the meaning of what it starts or is started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Command interpreter.
    Shell,
    /// Runs scripts handed to it.
    Interpreter,
    /// Brings files from elsewhere.
    Download,
    /// Answers requests from the network.
    Server,
    /// Starts jobs that others wrote down.
    Scheduler,
    /// Installs software.
    Package,
    /// Makes programs.
    Compiler,
    /// Tells about the system, its users and its network.
    Discovery,
    /// Changes the user.
    Privilege,
    /// None of these.
    Other,
}

impl Role {
    /// For tokens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Interpreter => "interpreter",
            Self::Download => "download",
            Self::Server => "server",
            Self::Scheduler => "scheduler",
            Self::Package => "package",
            Self::Compiler => "compiler",
            Self::Discovery => "discovery",
            Self::Privilege => "privilege",
            Self::Other => "other",
        }
    }
}

const LISTED: &[(Role, &str)] = &[
    (Role::Shell, "sh bash dash zsh ksh mksh rbash csh tcsh fish busybox"),
    (Role::Interpreter, "python perl ruby php lua node nodejs tclsh expect awk gawk mawk gdb java"),
    (
        Role::Download,
        "curl wget scp sftp sftp-server nc ncat netcat nc.traditional nc.openbsd socat ftp tftp lftp rsync aria2c",
    ),
    (
        Role::Server,
        "apache2 httpd nginx lighttpd caddy php-fpm php-cgi gunicorn uwsgi tomcat catalina mysqld mariadbd postgres \
         redis-server mongod memcached named dnsmasq smbd nmbd vsftpd proftpd exim4 postfix master dovecot haproxy \
         squid rabbitmq-server beam.smp kafka zookeeper jenkins slapd tor",
    ),
    (Role::Scheduler, "cron crond anacron atd run-parts systemd-run"),
    (
        Role::Package,
        "dpkg dpkg-deb dpkg-split dpkg-query dpkg-preconfigure dpkg-divert dpkg-trigger dpkg-maintscript-helper apt \
         apt-get apt-cache apt-config apt-key apt-mark apt-extracttemplates apt-check apt-listchanges aptitude http https gpgv \
         store unattended-upgrade yum dnf rpm rpmdb zypper snap snapd flatpak pip pip3 npm yarn gem cargo rustup conda \
         update-alternatives frontend mandb ldconfig depmod needrestart debconf-communicate packagekitd",
    ),
    (
        Role::Compiler,
        "gcc cc c++ g++ cc1 cc1plus collect2 ld ld.lld rust-lld as make cmake ninja clang lld rustc rustfmt go javac ar \
         ranlib strip objcopy objdump nm readelf install configure x86_64-linux-gnu-gcc pkg-config",
    ),
    (
        Role::Discovery,
        "id whoami uname hostname hostnamectl ip ifconfig ss netstat arp ps pstree top htop w who last lastlog lastb \
         users groups df du mount findmnt lsblk blkid fdisk env printenv getent find locate which whereis type ls \
         dir file stat lsof lscpu lspci lsusb lsmod free vmstat iostat uptime dmesg route ping ping6 traceroute \
         tracepath dig host nslookup nmap masscan arp-scan getcap capsh ausearch aureport history lsattr getfacl \
         timedatectl loginctl nproc pgrep lsb_release sysctl iptables-save auditctl rpcinfo showmount smbclient \
         ldapsearch strings",
    ),
    (Role::Privilege, "sudo su doas pkexec runuser setpriv newgrp sg chroot nsenter unshare visudo sudoedit"),
    (
        Role::Other,
        "cat tac nl head tail less lesspipe lessecho more pager view vi vim vim.basic vim.tiny nano ed emacs cp mv rm rmdir mkdir mkfifo \
         mknod ln readlink realpath basename dirname touch truncate shred dd tee sort uniq cut paste tr sed grep \
         egrep fgrep rgrep wc comm join diff cmp patch seq expr bc dc date cal sleep timeout time yes true false test \
         echo printf xargs nohup setsid screen tmux script scriptreplay base64 base32 xxd hexdump od md5sum sha1sum \
         sha256sum sha512sum cksum sum gzip gunzip zcat bzip2 xz unxz zstd lz4 zip unzip 7z tar cpio split csplit chmod chown chgrp chattr \
         setfacl setcap umask install passwd chpasswd chage chsh chfn useradd adduser usermod userdel deluser \
         groupadd groupmod groupdel gpasswd vipw kill pkill killall killall5 renice nice ionice taskset systemctl \
         service invoke-rc.d update-rc.d start-stop-daemon journalctl logger logrotate crontab at batch ssh \
         ssh-keygen ssh-add ssh-agent ssh-copy-id ssh-keyscan sshd sshd-session sshpass telnet openssl gpg gpg-agent gpgconf gpg-connect-agent \
         gpgsm dirmngr git git-upload-pack git-receive-pack git-remote-https git-remote-http svn hg docker dockerd \
         containerd containerd-shim containerd-shim-runc-v2 runc podman crun conmon kubectl kubelet k3s helm \
         ansible ansible-playbook puppet chef-client salt-minion salt-call terraform vagrant qemu-ga virsh \
         systemd systemd-journald systemd-logind systemd-udevd systemd-networkd systemd-resolved systemd-timesyncd \
         systemd-tmpfiles systemd-cgroups-agent systemd-sysctl systemd-detect-virt systemd-hostnamed systemd-timedated systemd-localed systemd-user-runtime-dir \
         systemd-executor systemd-cat systemd-notify systemd-sysusers init telinit shutdown reboot poweroff halt \
         dbus-daemon dbus-broker dbus-send polkitd rsyslogd syslog-ng auditd audisp-remote audispd chronyd ntpd ntpdate agetty login getty udevadm \
         modprobe insmod rmmod kmod swapoff swapon mkfs mkswap fsck losetup mdadm lvm dmsetup cryptsetup umount tune2fs e2fsck resize2fs \
         iptables ip6tables nft ufw firewalld fail2ban-server tcpdump tshark wireshark strace ltrace bpftrace \
         bpftool perf mysql mysqldump mysqladmin mariadb psql pg_dump pg_dumpall pg_restore pgbench createdb createuser dropdb pg_ctlcluster \
         redis-cli mongo mongosh sqlite3 jq yq envsubst gettext mktemp mountpoint nsswitch sar sadc sa1 \
         debian-sa1 tput stty tty clear clear_console reset dircolors locale localectl update-motd-updates-available \
         update-motd-reboot-required update-motd-fsck-at-reboot release-upgrade-motd landscape-sysinfo motd-news \
         man groff troff hydra medusa john hashcat xmrig sqlmap msfconsole proxychains stunnel autossh openvpn wg \
         wg-quick aws gcloud az rclone s3cmd restic borg duplicity zabbix_agentd node_exporter prometheus telegraf \
         collectd filebeat auditbeat metricbeat winlogbeat fluentd fluent-bit vector osqueryd wazuh-agentd \
         wazuh-execd ossec-syscheckd falcon-sensor falco sysdig tini dumb-init supervisord s6-svscan runsv monit runlevel \
         sendmail mail mailx mutt procmail newaliases getopt cloud-init cloud-init-local hwclock faillock pam_tty_audit \
         unix_chkpwd unix_update pam-auth-update getconf ldd iconv chcon restorecon setenforce getenforce semanage \
         setsebool aa-status apparmor_parser dpkg-statoverride debsums rkhunter chkrootkit lynis clamd clamscan freshclam watch",
    ),
];

static ROLES: LazyLock<FxHashMap<&'static str, Role>> = LazyLock::new(|| {
    let mut roles = FxHashMap::default();
    for (role, names) in LISTED {
        for name in names.split_whitespace() {
            // The first listing counts: a name stands under what it is feared for.
            roles.entry(name).or_insert(*role);
        }
    }
    roles
});

/// Programs that answer the same question or do the same service: tokens name the group, so that a list of
/// commands once seen in an attack is no sign, and another list of the same kind is one as well.
const GROUPS: &[(&str, &str)] = &[
    ("ask:user", "id whoami w who last lastlog lastb users groups loginctl"),
    (
        "ask:host",
        "uname hostname hostnamectl uptime lsb_release timedatectl nproc lscpu lspci lsusb lsmod lsblk blkid free \
         vmstat iostat dmesg sysctl env printenv",
    ),
    ("ask:network", "ip ifconfig ss netstat arp route rpcinfo iptables-save"),
    ("ask:process", "ps pstree top htop pgrep"),
    ("ask:disk", "df du mount findmnt"),
    ("ask:name", "ping ping6 traceroute tracepath dig host nslookup getent"),
    ("wrap", "setsid nohup timeout nice ionice taskset"),
    ("kill", "kill pkill killall killall5"),
    ("pager", "less more lesspipe lessecho view head tail"),
    ("sum", "md5sum sha1sum sha256sum sha512sum cksum"),
];

static GROUP_OF: LazyLock<FxHashMap<&'static str, &'static str>> = LazyLock::new(|| {
    GROUPS.iter().flat_map(|(group, names)| names.split_whitespace().map(move |name| (name, *group))).collect()
});

/// A program, reduced to a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Listed name.
    pub name: Option<&'static str>,
    /// What it is for; [`Role::Other`] where it is not listed, hidden, or lies where anyone may write.
    pub role: Role,
    /// Where it lies; `None` where only a thread's name is known.
    pub place: Option<Place>,
}

impl Program {
    /// The program whose image or script is at `path`.
    pub fn at(path: &str) -> Self {
        let place = Place::of(path);
        let name = listed(path.rsplit('/').next().unwrap_or(path));
        // A virtual environment's python is one; what calls itself sshd in a scratch directory is not.
        let trusted = !place.is_scratch() && !place.hidden;
        let role = name.filter(|_| trusted).map_or(Role::Other, |name| ROLES[name]);
        Self { name, role, place: Some(place) }
    }

    /// The program that a thread's name (at most 15 bytes) tells of: a thread may call itself what it likes, so
    /// this is second best.
    pub fn called(comm: &str) -> Self {
        let name = listed(comm.rsplit('/').next().unwrap_or(comm));
        Self { name, role: name.map_or(Role::Other, |name| ROLES[name]), place: None }
    }

    /// Starts programs that have nothing to do with each other: a session begins below it.
    pub fn is_hub(&self) -> bool {
        if !self.place.is_none_or(|place| at_home(&place)) {
            return false; // only bears the name
        }
        let starts = matches!(
            self.name,
            Some(
                "sshd"
                    | "sshd-session"
                    | "systemd"
                    | "systemd-executor"
                    | "init"
                    | "dockerd"
                    | "containerd"
                    | "containerd-shim"
                    | "containerd-shim-runc-v2"
                    | "conmon"
                    | "tini"
                    | "dumb-init"
                    | "supervisord"
                    | "runsv"
                    | "s6-svscan"
                    | "cron"
                    | "crond"
                    | "anacron"
                    | "atd"
                    | "kubelet"
            )
        );
        starts || self.role == Role::Server
    }

    /// For tokens: `bash`, `ask:user`, `bash@/tmp`, `?@/opt`, `?.script@/var/www`, `?`.
    pub fn token(&self) -> String {
        let name = self.name.map(|name| GROUP_OF.get(name).copied().unwrap_or(name));
        match (name, self.place) {
            (Some(name), None) => name.to_owned(),
            (Some(name), Some(place)) if at_home(&place) => name.to_owned(),
            (Some(name), Some(place)) => format!("{name}@{}", place.token()),
            (None, Some(place)) if place.extension == "script" => format!("?.script@{}", place.token()),
            (None, Some(place)) => format!("?@{}", place.token()),
            (None, None) => "?".to_owned(),
        }
    }
}

/// A directory that programs of the list are installed to.
fn at_home(place: &Place) -> bool {
    place.is_system_bin() || place.area == "rel"
}

/// The listed name that `name` is, a version or a cut (at 15 bytes) set aside.
fn listed(name: &str) -> Option<&'static str> {
    let find = |name: &str| ROLES.get_key_value(name).map(|(name, _)| *name);
    if let Some(found) = find(name) {
        return Some(found);
    }
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    if plain.len() < name.len()
        && let Some(found) = find(plain)
    {
        return Some(found);
    }
    // The kernel cuts thread names at 15 bytes; the smallest of the names so cut, for determinism.
    if name.len() == 15 {
        return ROLES.keys().filter(|known| known.starts_with(name)).min().copied();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_become_classes() {
        for (path, token, role) in [
            ("/usr/bin/bash", "bash", Role::Shell),
            ("/bin/sh", "sh", Role::Shell),
            ("/usr/bin/python3.11", "python", Role::Interpreter),
            ("/usr/sbin/php-fpm8.2", "php-fpm", Role::Server),
            ("/usr/sbin/apache2", "apache2", Role::Server),
            ("/usr/local/bin/backup-helper", "?@/usr/local/bin", Role::Other),
            ("/dev/shm/.x/bash", "bash@/dev/shm!hid", Role::Other),
            ("/home/bob/v1/bin/python3", "python@home", Role::Interpreter),
            ("/tmp/.update", "?@/tmp!hid", Role::Other),
            ("/var/www/portal/uploads/help.cgi", "?.script@/var/www", Role::Other),
            ("curl", "curl", Role::Download),
            ("/usr/bin/whoami", "ask:user", Role::Discovery),
            ("/tmp/whoami", "ask:user@/tmp", Role::Other),
            ("/usr/bin/setsid", "wrap", Role::Other),
        ] {
            let program = Program::at(path);
            assert_eq!((program.token().as_str(), program.role), (token, role), "{path}");
        }
        assert!(Program::at("/usr/sbin/sshd").is_hub() && Program::called("nginx").is_hub());
        assert!(!Program::at("/opt/sshd").is_hub() && !Program::at("/bin/bash").is_hub());
        assert_eq!(Program::called("systemd-journal").token(), "systemd-journald");
        assert_eq!(Program::called("wardog").token(), "?");
        assert_eq!(Program::called("tmux: server").token(), "?");
    }
}
