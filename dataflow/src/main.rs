//! `logster`: see [`logster_dataflow::cli`].

/// The system's allocator took a seventh of the pipeline's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    logster_dataflow::cli::main()
}
