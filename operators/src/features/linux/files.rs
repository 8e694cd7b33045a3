//! Files that processes touch, and what is not worth a token.

use super::*;

impl Builder<'_, '_> {
    pub(super) fn file(&mut self, process: &Process, fact: &Fact<'_>, file: &File<'_>) {
        let Some(target) = file.target.as_deref() else { return };
        self.touch(process, fact, file, target);
        for other in &file.others {
            self.touch(process, fact, file, other);
        }
        if let Some(mode) = file.mode.filter(|_| file.errno == 0) {
            let class = mode_class(mode);
            let token = format!("mmc:{}|{class}", self.token_of(process.program));
            self.pane.token(process.node, &format!("mm:{class}"));
            self.pane.token(process.node, &token);
        }
    }

    pub(super) fn touch(&mut self, process: &Process, fact: &Fact<'_>, file: &File<'_>, text: &str) {
        let path = self.path(text);
        let number = self.paths[path as usize].place;
        let place = self.place_of(path);
        let op = file.op;
        if file.errno != 0 {
            // Being refused says something; a file that is not there does not.
            if matches!(file.errno, 1 | 13) {
                let set = self
                    .set(SetKey::Failed(op, number, true), |_| vec![format!("fe:{}|{}", op.letter(), place.token())]);
                self.pane.apply(process.node, set);
            }
            return;
        }
        let reads = matches!(op, FileOp::Read | FileOp::List);
        if !(reads && self.is_plumbing(process.program, &place)) {
            let set = self.set(SetKey::File(op, process.program, number), |builder| {
                let (program, place, letter) = (builder.token_of(process.program), builder.place_of(path), op.letter());
                // A hidden file in /tmp is a lock or a socket as often as not; running one is another matter.
                let place = if place.is_scratch() { place.area.to_owned() } else { place.token() };
                let mut tokens = vec![format!("f:{letter}|{place}"), format!("fc:{letter}|{program}|{place}")];
                if !reads {
                    tokens.push(format!("fx:{letter}|{program}|{}", builder.place_of(path).extension));
                }
                tokens
            });
            self.pane.apply(process.node, set);
        }
        let written = self.paths[path as usize].written;
        match op {
            FileOp::Read | FileOp::List => {
                if let Some(written) = written
                    && written.pid != fact.pid
                    && matches!(self.role_of(process.program), Role::Shell | Role::Interpreter)
                {
                    let by = self.role_of(written.by).name();
                    let token = format!("g:dropread|{}|{by}", self.token_of(process.program));
                    self.pane.flag(process.node, &token);
                }
                if place.is_sensitive() {
                    self.sensitive(process, text, &place);
                }
                self.read_findings(process, text, &place);
                return;
            }
            FileOp::Chmod if written.is_some() => {
                let by = written.map_or("", |written| self.role_of(written.by).name());
                self.pane.flag(process.node, &format!("g:chmodnew|{by}"));
            }
            FileOp::Delete if self.paths[path as usize].ran => {
                self.pane.flag(process.node, "g:delran");
            }
            _ => {}
        }
        if file.truncates || file.appends {
            let how = if file.truncates { 'T' } else { 'A' };
            self.pane.token(process.node, &format!("ff:{how}|{}", place.token()));
        }
        if op.writes() {
            // What was renamed was written by whoever wrote it under the old name.
            let inherited = file.source.as_deref().and_then(|source| {
                self.path_numbers.get(source).and_then(|&source| self.paths[source as usize].written)
            });
            let new = Written { by: process.program, pid: fact.pid, time_ms: self.now };
            self.paths[path as usize].written = Some(inherited.unwrap_or(new));
        }
        self.write_findings(process, file, text, &place);
        if matches!(place.area, "/dev/null" | "/dev/tty" | "/proc/self" | "/proc/#" | "/proc") {
            return; // no file that lasts
        }
        let count = self.files_of.entry((process.node, number)).or_default();
        *count += 1;
        let node = if *count <= FILES_EACH || self.paths[path as usize].node.is_some() {
            self.file_node(path, text)
        } else {
            let label = format!("other files of {} ({})", place.token(), place.extension);
            self.pane.node(NodeKind::File, &label, &label)
        };
        self.pane.edge(process.node, node, Relation::Wrote);
    }

    /// What a program reads to start at all, or to find names and addresses: it tells that the program ran, which
    /// the execution told already, and only one of the two sources sees it.
    fn is_plumbing(&self, program: ProgramNo, place: &Place) -> bool {
        match place.area {
            "/usr/lib" | "/usr/share" | "/usr/bin" | "/usr/sbin" | "/usr/libexec" | "/usr/include" | "/etc/ld.so"
            | "/etc/ld.so.preload" | "/etc/hosts" | "/etc/ssl" | "/proc/self" | "/proc/sys" | "/proc" | "/sys"
            | "/dev/null" | "/dev/tty" | "/dev" => true,
            // Who asks for files by name means them.
            "/etc/passwd" | "/etc" => {
                let (program, _) = &self.programs[usize::from(program)];
                let asks = matches!(
                    program.name,
                    None | Some(
                        "cat"
                            | "tac"
                            | "less"
                            | "more"
                            | "head"
                            | "tail"
                            | "grep"
                            | "egrep"
                            | "awk"
                            | "gawk"
                            | "mawk"
                            | "sed"
                            | "cut"
                            | "sort"
                            | "strings"
                            | "xxd"
                            | "base64"
                            | "cp"
                            | "scp"
                            | "tar"
                            | "rsync"
                            | "curl"
                            | "dd"
                            | "vi"
                            | "vim"
                            | "vim.basic"
                            | "vim.tiny"
                            | "nano"
                            | "nl"
                            | "diff"
                    )
                );
                !asks
            }
            _ => false,
        }
    }

    /// Reading secrets: a request of its own kind, whatever the file's name.
    fn sensitive(&mut self, process: &Process, text: &str, place: &Place) {
        let label = format!("read of {}", place.area);
        let node = self.pane.node(NodeKind::Syscall, &label, &label);
        self.pane.token(node, &format!("p:{}", place.token()));
        self.pane.attribute(node, Attribute::Example, text);
        self.pane.edge(process.node, node, Relation::Performed);
    }

    pub(super) fn set(&mut self, key: SetKey, tokens: impl FnOnce(&Self) -> Vec<String>) -> SetId {
        if let Some(&set) = self.sets.get(&key) {
            return set;
        }
        let tokens = tokens(self).iter().map(|token| TokenId::new(token, false)).collect();
        let set = self.pane.set(tokens);
        self.sets.insert(key, set);
        set
    }
}
