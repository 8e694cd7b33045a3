//! `logster`: see [`logster_dataflow::cli`].

fn main() -> std::process::ExitCode {
    logster_dataflow::cli::main()
}
