//! ONNX Runtime behind one door: the library, a session per package and thread, a batch in and scores out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};
use serde::Deserialize;

use super::package::{MODEL, SELF_TEST};
use super::{GraphScore, ModelPackage};
use crate::features::{EDGE_FEATURES, GRAPH_FEATURES, NODE_FEATURES, Tensors, tensors};
use crate::graph::WindowGraph;

/// How often the self-test runs at load: a race in the runtime shows within a few runs.
const SELF_TEST_RUNS: usize = 20;
/// How far a CPU may be from the recorded outputs (other processors sum in another order).
const CPU_TOLERANCE: f32 = 1e-4;
/// How far a GPU may be: its float atomics are not bit-reproducible.
const GPU_TOLERANCE: f32 = 1e-3;

/// Names, types and widths of the model's inputs, in the order in which [`ModelSession::run`] feeds them.
const INPUTS: [&str; 12] = [
    "node_type: i64[N]",
    "node_feat: f32[N,16]",
    "tok_id: i64[T]",
    "tok_node: i64[T]",
    "tree_id: i64[U]",
    "tree_node: i64[U]",
    "edge_src: i64[E]",
    "edge_dst: i64[E]",
    "edge_type: i64[E]",
    "edge_feat: f32[E,8]",
    "node_graph: i64[N]",
    "graph_feat: f32[B,8]",
];
const OUTPUTS: [&str; 3] = ["logits: f32[B,2]", "edge_attn: f32[E,2]", "node_score: f32[N]"];

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// ONNX Runtime's CPU provider.
    #[default]
    Cpu,
    /// The CUDA provider (`onnxruntime-gpu` and its libraries).
    Cuda,
}

/// Why a session cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SessionError {
    #[error(
        "cannot load ONNX Runtime from {path}: {reason}; set `model.onnxruntime` or LOGSTER_ONNXRUNTIME to libonnxruntime.so of the onnxruntime 1.31 wheel"
    )]
    Library { path: PathBuf, reason: String },
    #[error("ONNX Runtime was loaded from {loaded} already, cannot load {wanted}: a process has one")]
    OtherLibrary { loaded: PathBuf, wanted: PathBuf },
    #[error(
        "the CUDA device cannot be had: {reason}; install onnxruntime-gpu with CUDA 13, or set `model.device = \"cpu\"` or `model.fallback = \"cpu\"`"
    )]
    Cuda { reason: String },
    #[error(
        "ONNX Runtime refuses {path}: {reason}; the package was made for another version, train or copy one that fits"
    )]
    Model { path: PathBuf, reason: String },
    #[error(
        "{path}: the model's {what} are {found:?}, this logster speaks {expected:?}; use the package that came with it"
    )]
    Contract { path: PathBuf, what: &'static str, expected: Vec<String>, found: Vec<String> },
    #[error("{path}: self-test failed: {reason}; do not trust scores of this runtime and processor, report it")]
    SelfTest { path: PathBuf, reason: String },
    #[error("cannot start a scoring thread")]
    Thread(#[source] io::Error),
}

static RUNTIME: OnceLock<Result<(PathBuf, Environment), (PathBuf, String)>> = OnceLock::new();

/// The loaded ONNX Runtime library. One a process.
#[derive(Clone)]
pub struct Runtime(Environment);

impl Runtime {
    /// Loads `libonnxruntime.so` from `path`, or hands out what was loaded from there before.
    pub fn load(path: &Path) -> Result<Self, SessionError> {
        let loaded = RUNTIME.get_or_init(|| {
            let fail = |e: &dyn std::fmt::Display| (path.to_path_buf(), e.to_string());
            let builder = ort::init_from(path).map_err(|e| fail(&e))?;
            let environment = builder.with_name("logster").with_telemetry(false).build().map_err(|e| fail(&e))?;
            environment.set_log_level(ort::logging::LogLevel::Warning);
            Ok((path.to_path_buf(), environment))
        });
        match loaded {
            Ok((from, environment)) if from == path => Ok(Self(environment.clone())),
            Ok((from, _)) => Err(SessionError::OtherLibrary { loaded: from.clone(), wanted: path.to_path_buf() }),
            Err((path, reason)) => Err(SessionError::Library { path: path.clone(), reason: reason.clone() }),
        }
    }
}

/// The model's outputs for a batch.
#[derive(Debug, PartialEq, Deserialize)]
struct Outputs {
    logits: Vec<f32>,
    edge_attn: Vec<f32>,
    node_score: Vec<f32>,
}

impl Outputs {
    fn farthest(&self, other: &Self) -> f32 {
        let columns =
            [(&self.logits, &other.logits), (&self.edge_attn, &other.edge_attn), (&self.node_score, &other.node_score)];
        if columns.iter().any(|(a, b)| a.len() != b.len()) {
            return f32::INFINITY;
        }
        // `max` forgets NaN, so a NaN is made a distance first.
        let distance = |a: &f32, b: &f32| if a.is_finite() && b.is_finite() { (a - b).abs() } else { f32::INFINITY };
        columns.iter().flat_map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| distance(a, b))).fold(0.0, f32::max)
    }

    fn bits(&self) -> Vec<u32> {
        [&self.logits, &self.edge_attn, &self.node_score].into_iter().flatten().map(|v| v.to_bits()).collect()
    }
}

#[derive(Deserialize)]
struct SelfTest {
    #[serde(with = "TensorsDef")]
    inputs: Tensors,
    outputs: Outputs,
}

/// [`Tensors`] as the self-test vector holds them.
#[derive(Deserialize)]
#[serde(remote = "Tensors")]
struct TensorsDef {
    node_type: Vec<i64>,
    node_feat: Vec<f32>,
    tok_id: Vec<i64>,
    tok_node: Vec<i64>,
    tree_id: Vec<i64>,
    tree_node: Vec<i64>,
    edge_src: Vec<i64>,
    edge_dst: Vec<i64>,
    edge_type: Vec<i64>,
    edge_feat: Vec<f32>,
    node_graph: Vec<i64>,
    graph_feat: Vec<f32>,
}

/// A model ready to run on one thread.
pub(super) struct ModelSession {
    session: Session,
}

impl ModelSession {
    /// Opens the package's model on `device`, checks its contract and runs its self-test.
    pub(super) fn open(
        runtime: &Runtime,
        package: &ModelPackage,
        device: Device,
        fallback_to_cpu: bool,
    ) -> Result<Self, SessionError> {
        let path = package.folder().join(MODEL);
        let (session, device) = match build(runtime, package, device) {
            Err(BuildError::Cuda(reason)) if fallback_to_cpu => {
                tracing::warn!(%reason, "no CUDA device, scoring on the CPU");
                (build(runtime, package, Device::Cpu), Device::Cpu)
            }
            other => (other, device),
        };
        let session = session.map_err(|e| match e {
            BuildError::Cuda(reason) => SessionError::Cuda { reason },
            BuildError::Model(reason) => SessionError::Model { path: path.clone(), reason },
        })?;
        let declared = &package.manifest().tensors;
        let inputs = session.inputs().iter().map(describe).collect();
        let outputs = session.outputs().iter().map(describe).collect();
        check_contract(&path, "inputs", &INPUTS, &declared.inputs, inputs)?;
        check_contract(&path, "outputs", &OUTPUTS, &declared.outputs, outputs)?;
        let mut this = Self { session };
        this.self_test(package, device)?;
        Ok(this)
    }

    fn self_test(&mut self, package: &ModelPackage, device: Device) -> Result<(), SessionError> {
        let path = package.folder().join(SELF_TEST);
        let fail = |reason: String| SessionError::SelfTest { path: path.clone(), reason };
        let golden: SelfTest =
            serde_json::from_slice(package.file(SELF_TEST)).map_err(|e| fail(format!("not readable: {e}")))?;
        let tolerance = if device == Device::Cpu { CPU_TOLERANCE } else { GPU_TOLERANCE };
        let mut first = None;
        for run in 0..SELF_TEST_RUNS {
            let got = self.run(&golden.inputs).map_err(&fail)?;
            let distance = got.farthest(&golden.outputs);
            if distance > tolerance {
                return Err(fail(format!("run {run} is {distance} from the recorded outputs, {tolerance} is allowed")));
            }
            let bits = got.bits();
            if device == Device::Cpu && *first.get_or_insert_with(|| bits.clone()) != bits {
                return Err(fail(format!("run {run} differs from run 0 on the same input")));
            }
        }
        Ok(())
    }

    fn run(&mut self, u: &Tensors) -> Result<Outputs, String> {
        let (nodes, edges, graphs) = (u.num_nodes(), u.num_edges(), u.num_graphs());
        let feed: [SessionInputValue<'_>; 12] = [
            tensor(vec![nodes], &u.node_type)?,
            tensor(vec![nodes, NODE_FEATURES], &u.node_feat)?,
            tensor(vec![u.tok_id.len()], &u.tok_id)?,
            tensor(vec![u.tok_node.len()], &u.tok_node)?,
            tensor(vec![u.tree_id.len()], &u.tree_id)?,
            tensor(vec![u.tree_node.len()], &u.tree_node)?,
            tensor(vec![edges], &u.edge_src)?,
            tensor(vec![u.edge_dst.len()], &u.edge_dst)?,
            tensor(vec![u.edge_type.len()], &u.edge_type)?,
            tensor(vec![edges, EDGE_FEATURES], &u.edge_feat)?,
            tensor(vec![u.node_graph.len()], &u.node_graph)?,
            tensor(vec![graphs, GRAPH_FEATURES], &u.graph_feat)?,
        ];
        let out = self.session.run(feed).map_err(|e| e.to_string())?;
        let take = |name: &str, len: usize| -> Result<Vec<f32>, String> {
            let value = out.get(name).ok_or_else(|| format!("no output {name}"))?;
            let (_, data) = value.try_extract_tensor::<f32>().map_err(|e| e.to_string())?;
            if data.len() != len {
                return Err(format!("output {name} has {} values, expected {len}", data.len()));
            }
            Ok(data.to_vec())
        };
        Ok(Outputs {
            logits: take("logits", 2 * graphs)?,
            edge_attn: take("edge_attn", 2 * edges)?,
            node_score: take("node_score", nodes)?,
        })
    }

    /// Scores graphs in one batch; one by one where the batch fails, so that one bad graph spoils no other.
    pub(super) fn score(&mut self, graphs: &[&WindowGraph]) -> Vec<Result<GraphScore, String>> {
        match self.run(&tensors(graphs)) {
            Ok(out) => split(graphs, &out),
            Err(reason) if graphs.len() == 1 => vec![Err(reason)],
            Err(_) => graphs
                .iter()
                .map(|g| match self.run(&tensors(&[g])) {
                    Ok(out) => split(&[g], &out).swap_remove(0),
                    Err(reason) => Err(reason),
                })
                .collect(),
        }
    }
}

/// Cuts a batch's outputs into one score a graph.
fn split(graphs: &[&WindowGraph], out: &Outputs) -> Vec<Result<GraphScore, String>> {
    let (mut node, mut edge) = (0, 0);
    let cut = |(i, g): (usize, &&WindowGraph)| {
        let (n, e) = (g.num_nodes() as usize, g.num_edges() as usize);
        let (z0, z1) = (f64::from(out.logits[2 * i]), f64::from(out.logits[2 * i + 1]));
        let attack_prob = 1.0 / (1.0 + (z0 - z1).exp());
        let score = GraphScore {
            attack_prob: (attack_prob * 1e6).round() / 1e6,
            edge_attn: out.edge_attn[2 * edge..2 * (edge + e)].chunks_exact(2).map(|a| (a[0], a[1])).collect(),
            node_score: out.node_score[node..node + n].to_vec(),
            key_edges: Vec::new(),
        };
        node += n;
        edge += e;
        if attack_prob.is_finite() { Ok(score) } else { Err("the model's logits are not finite".to_owned()) }
    };
    graphs.iter().enumerate().map(cut).collect()
}

fn tensor<'a, T>(shape: Vec<usize>, data: &'a [T]) -> Result<SessionInputValue<'a>, String>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    Ok(TensorRef::from_array_view((shape, data)).map_err(|e| e.to_string())?.into())
}

enum BuildError {
    Cuda(String),
    Model(String),
}

fn build(runtime: &Runtime, package: &ModelPackage, device: Device) -> Result<Session, BuildError> {
    fn model(e: impl std::fmt::Display) -> BuildError {
        BuildError::Model(e.to_string())
    }
    let builder = Session::builder(&runtime.0).map_err(model)?;
    let builder = builder.with_intra_threads(1).map_err(model)?.with_inter_threads(1).map_err(model)?;
    // Shapes change with every batch: memory patterns would be planned and never used again.
    let mut builder = builder.with_memory_pattern(false).map_err(model)?;
    if device == Device::Cuda {
        let cuda = ort::ep::CUDA::default().build().error_on_failure();
        builder = builder.with_execution_providers([cuda]).map_err(|e| BuildError::Cuda(e.to_string()))?;
    }
    builder.commit_from_memory(package.file(MODEL)).map_err(model)
}

/// `name: f32[N,16]`, as the manifest writes it.
fn describe(outlet: &ort::value::Outlet) -> String {
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return format!("{}: not a tensor", outlet.name());
    };
    let element = match ty {
        TensorElementType::Int64 => "i64".to_owned(),
        TensorElementType::Float32 => "f32".to_owned(),
        other => format!("{other:?}"),
    };
    let dimension = |(size, symbol): (&i64, &String)| if *size < 0 { symbol.clone() } else { size.to_string() };
    let dims: Vec<String> = shape.iter().zip(dimension_symbols.iter()).map(dimension).collect();
    format!("{}: {element}[{}]", outlet.name(), dims.join(","))
}

fn check_contract(
    path: &Path,
    what: &'static str,
    expected: &[&str],
    declared: &[String],
    found: Vec<String>,
) -> Result<(), SessionError> {
    if found == expected && declared == expected {
        return Ok(());
    }
    let found = if found == expected { declared.to_vec() } else { found };
    let expected = expected.iter().map(|s| (*s).to_owned()).collect();
    Err(SessionError::Contract { path: path.to_path_buf(), what, expected, found })
}
