//! What each system call is about: one table, by name and by number.

/// What a system call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Replaces the process image.
    Exec,
    /// Changes or opens a file.
    File(FileOp),
    /// Speaks to another host or process.
    Network(NetOp),
    /// Anything else of the table.
    Other,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileOp {
    /// Opened for reading.
    Read,
    /// Opened for writing, not created on demand.
    Write,
    /// Opened for writing, created where missing.
    Create,
    /// Unlinked.
    Delete,
    /// Renamed; the target is the new name.
    Rename,
    /// Permission bits changed.
    Chmod,
    /// Owner changed.
    Chown,
    /// Hard or symbolic link made.
    Link,
    /// Directory made.
    Mkdir,
    /// Time stamps set.
    Times,
    /// Extended attribute set.
    Attribute,
    /// Directory opened for reading.
    List,
}

impl FileOp {
    /// One letter, for tokens.
    pub const fn letter(self) -> char {
        match self {
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Create => 'c',
            Self::Delete => 'd',
            Self::Rename => 'v',
            Self::Chmod => 'm',
            Self::Chown => 'o',
            Self::Link => 'l',
            Self::Mkdir => 'k',
            Self::Times => 'u',
            Self::Attribute => 'x',
            Self::List => 'D',
        }
    }

    /// Leaves content under the target's name.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Create | Self::Rename)
    }
}

/// Direction of a socket call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetOp {
    /// Outwards, or a datagram sent.
    Connect,
    /// A local address taken.
    Bind,
    /// Inwards.
    Accept,
}

impl NetOp {
    /// As the eBPF lines call it, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Bind => "bind",
            Self::Accept => "accept",
        }
    }
}

/// Name, meaning, and number on x86_64, aarch64 and 32-bit x86 (a way round 64-bit rules); -1: not there.
pub(super) const CALLS: &[(&str, Call, [i16; 3])] = &[
    ("execve", Call::Exec, [59, 221, 11]),
    ("execveat", Call::Exec, [322, 281, 358]),
    ("open", Call::File(FileOp::Read), [2, -1, 5]),
    ("openat", Call::File(FileOp::Read), [257, 56, 295]),
    ("openat2", Call::File(FileOp::Read), [437, 437, 437]),
    ("creat", Call::File(FileOp::Create), [85, -1, 8]),
    ("truncate", Call::File(FileOp::Write), [76, 45, 92]),
    ("unlink", Call::File(FileOp::Delete), [87, -1, 10]),
    ("unlinkat", Call::File(FileOp::Delete), [263, 35, 301]),
    ("rmdir", Call::File(FileOp::Delete), [84, -1, 40]),
    ("rename", Call::File(FileOp::Rename), [82, -1, 38]),
    ("renameat", Call::File(FileOp::Rename), [264, 38, 302]),
    ("renameat2", Call::File(FileOp::Rename), [316, 276, 353]),
    ("chmod", Call::File(FileOp::Chmod), [90, -1, 15]),
    ("fchmod", Call::File(FileOp::Chmod), [91, 52, 94]),
    ("fchmodat", Call::File(FileOp::Chmod), [268, 53, 306]),
    ("fchmodat2", Call::File(FileOp::Chmod), [452, 452, 452]),
    ("chown", Call::File(FileOp::Chown), [92, -1, 182]),
    ("fchown", Call::File(FileOp::Chown), [93, 55, 95]),
    ("lchown", Call::File(FileOp::Chown), [94, -1, 16]),
    ("fchownat", Call::File(FileOp::Chown), [260, 54, 298]),
    ("link", Call::File(FileOp::Link), [86, -1, 9]),
    ("linkat", Call::File(FileOp::Link), [265, 37, 303]),
    ("symlink", Call::File(FileOp::Link), [88, -1, 83]),
    ("symlinkat", Call::File(FileOp::Link), [266, 36, 304]),
    ("mkdir", Call::File(FileOp::Mkdir), [83, -1, 39]),
    ("mkdirat", Call::File(FileOp::Mkdir), [258, 34, 296]),
    ("utime", Call::File(FileOp::Times), [132, -1, 30]),
    ("utimes", Call::File(FileOp::Times), [235, -1, 271]),
    ("utimensat", Call::File(FileOp::Times), [280, 88, 320]),
    ("setxattr", Call::File(FileOp::Attribute), [188, 5, 226]),
    ("lsetxattr", Call::File(FileOp::Attribute), [189, 6, 227]),
    ("fsetxattr", Call::File(FileOp::Attribute), [190, 7, 228]),
    ("connect", Call::Network(NetOp::Connect), [42, 203, 362]),
    ("sendto", Call::Network(NetOp::Connect), [44, 206, 369]),
    ("bind", Call::Network(NetOp::Bind), [49, 200, 361]),
    ("accept", Call::Network(NetOp::Accept), [43, 202, -1]),
    ("accept4", Call::Network(NetOp::Accept), [288, 242, 364]),
    ("socket", Call::Other, [41, 198, 359]),
    ("ptrace", Call::Other, [101, 117, 26]),
    ("process_vm_writev", Call::Other, [311, 271, 348]),
    ("process_vm_readv", Call::Other, [310, 270, 347]),
    ("memfd_create", Call::Other, [319, 279, 356]),
    ("init_module", Call::Other, [175, 105, 128]),
    ("finit_module", Call::Other, [313, 273, 350]),
    ("delete_module", Call::Other, [176, 106, 129]),
    ("bpf", Call::Other, [321, 280, 357]),
    ("mount", Call::Other, [165, 40, 21]),
    ("umount2", Call::Other, [166, 39, 52]),
    ("pivot_root", Call::Other, [155, 41, 217]),
    ("chroot", Call::Other, [161, 51, 61]),
    ("unshare", Call::Other, [272, 97, 310]),
    ("setns", Call::Other, [308, 268, 346]),
    ("setuid", Call::Other, [105, 146, 213]),
    ("setgid", Call::Other, [106, 144, 214]),
    ("setreuid", Call::Other, [113, 145, 203]),
    ("setregid", Call::Other, [114, 143, 204]),
    ("setresuid", Call::Other, [117, 147, 208]),
    ("setresgid", Call::Other, [119, 149, 210]),
    ("kill", Call::Other, [62, 129, 37]),
    ("sethostname", Call::Other, [170, 161, 74]),
    ("settimeofday", Call::Other, [164, 170, 79]),
    ("clock_settime", Call::Other, [227, 112, 264]),
    ("adjtimex", Call::Other, [159, 171, 124]),
    ("kexec_load", Call::Other, [246, 104, 283]),
    ("add_key", Call::Other, [248, 217, 286]),
    ("clone", Call::Other, [56, 220, 120]),
    ("fork", Call::Other, [57, -1, 2]),
    ("vfork", Call::Other, [58, -1, 190]),
];

/// For each architecture, number → 1 + row of [`CALLS`]; 0: not in the table.
const BY_NUMBER: [[u8; 512]; 3] = {
    let mut map = [[0; 512]; 3];
    let mut row = 0;
    while row < CALLS.len() {
        let mut arch = 0;
        while arch < 3 {
            let number = CALLS[row].2[arch];
            if number >= 0 {
                map[arch][number as usize] = row as u8 + 1;
            }
            arch += 1;
        }
        row += 1;
    }
    map
};

/// Row of [`CALLS`] of a numbered call.
pub(super) fn call_by_number(arch: &str, number: &str) -> Option<usize> {
    let arch = match arch {
        "c000003e" | "" => 0,
        "c00000b7" => 1,
        "40000003" => 2,
        _ => return None,
    };
    let row = *BY_NUMBER[arch].get(number.parse::<usize>().ok()?)?;
    (row > 0).then(|| row as usize - 1)
}
