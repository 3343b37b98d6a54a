//! Loads an export and runs every entry on its test vectors: what an engine in Rust does with one.
//!
//!     cargo run --release -- DIR        # DIR is what `ferrum-numba export --vectors` wrote
//!
//! `launch` is all that an engine needs of it: grid, scalars and workspace come from a row of
//! dispatch.json as they come here from a vector's record, which has the same members.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::{c_void, CString};
use std::path::Path;

use cudarc::driver::sys::{
    self, CUdeviceptr, CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue_union__bindgen_ty_1, CUlaunchConfig, CUmodule,
};
use cudarc::driver::{result, CudaContext, CudaStream};
use safetensors::SafeTensors;
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SCHEMA: i64 = 1;

/// A formula's value: a whole number, "M", or [operator, formula, formula].
fn evaluate(formula: &Value, m: i64) -> Result<i64> {
    if let Some(value) = formula.as_i64() {
        return Ok(value);
    }
    if formula.as_str() == Some("M") {
        return Ok(m);
    }
    let parts = formula.as_array().filter(|parts| parts.len() == 3).ok_or("no formula")?;
    let (a, b) = (evaluate(&parts[1], m)?, evaluate(&parts[2], m)?);
    match parts[0].as_str() {
        Some("+") => Ok(a + b),
        Some("*") => Ok(a * b),
        Some("ceil_div") => Ok((a + b - 1).div_euclid(b)),
        other => Err(format!("no formula has the operator {other:?}").into()),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().ok_or_else(|| format!("{name} is missing").into())
}

fn number(value: &Value, name: &str) -> Result<i64> {
    value[name].as_i64().ok_or_else(|| format!("{name} is missing").into())
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a [Value]> {
    let found = value[name].as_array();
    Ok(found.ok_or_else(|| format!("{name} is missing"))?.as_slice())
}

fn flag(value: &Value, name: &str) -> bool {
    value[name].as_bool().unwrap_or(false)
}

/// Three sizes: x, y, z.
fn sizes(value: &Value, name: &str, m: i64) -> Result<[u32; 3]> {
    let found = list(value, name)?;
    let mut made = [1; 3];
    for (size, formula) in made.iter_mut().zip(found) {
        *size = u32::try_from(evaluate(formula, m)?)?;
    }
    Ok(made)
}

/// A program of an export, in the context that is current.
struct Program<'a> {
    entry: &'a Value,
    module: CUmodule,
    function: CUfunction,
}

impl<'a> Program<'a> {
    /// Loads a cubin, and allows it the shared memory and the cluster that it needs.
    fn load(folder: &Path, entry: &'a Value) -> Result<Self> {
        let (symbol, file) = (text(entry, "symbol")?, text(entry, "file")?);
        let cubin = std::fs::read(folder.join(file))?;
        // an engine compares the sha256 too: the driver does not notice a changed byte of code
        if cubin.len() as i64 != number(entry, "bytes")? {
            return Err(format!("{file} is damaged: {} bytes", cubin.len()).into());
        }
        let refused = |error| format!("{file}: {error:?}");
        let module = unsafe { result::module::load_data(cubin.as_ptr() as *const c_void) };
        let module = module.map_err(refused)?;
        let function = unsafe { result::module::get_function(module, CString::new(symbol)?) };
        let function = function.map_err(refused)?;
        let set = |attribute, value| unsafe {
            result::function::set_function_attribute(function, attribute, value)
        };
        if flag(entry, "raise_smem_limit") {
            let smem_bytes = number(entry, "smem_bytes")? as i32;
            set(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, smem_bytes)?;
        }
        if flag(entry, "allow_large_cluster") {
            set(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        }
        Ok(Self { entry, module, function })
    }

    /// Launches it for M rows on a stream; waits for nothing.
    ///
    /// launch:  of a row of dispatch.json, or a vector's record
    /// buffers: address of every pointer parameter, by its name
    ///
    /// # Safety
    ///
    /// The buffers must be as large as the manifest and the launch say, and stay until it has run.
    unsafe fn launch(
        &self,
        launch: &Value,
        m: i64,
        buffers: &HashMap<String, CUdeviceptr>,
        stream: &CudaStream,
    ) -> Result<()> {
        // the driver reads 8 bytes of a pointer and 4 of a scalar, the low half
        let mut values = Vec::new();
        for parameter in list(self.entry, "parameters")? {
            let name = text(parameter, "name")?;
            values.push(if text(parameter, "type")? == "pointer" {
                *buffers.get(name).ok_or_else(|| format!("no buffer is given for {name}"))?
            } else {
                u64::from(u32::try_from(evaluate(&launch["scalars"][name], m)?)?)
            });
        }
        let mut slots: Vec<*mut c_void> =
            values.iter_mut().map(|value| value as *mut u64 as *mut c_void).collect();
        let mut attributes = self.attributes()?;
        let (grid, block) = (sizes(launch, "grid", m)?, sizes(self.entry, "block", m)?);
        let config = CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: number(self.entry, "smem_bytes")? as u32,
            hStream: stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let extra = std::ptr::null_mut();
        sys::cuLaunchKernelEx(&config, self.function, slots.as_mut_ptr(), extra).result()?;
        Ok(())
    }

    fn attributes(&self) -> Result<Vec<CUlaunchAttribute>> {
        let mut made = Vec::new();
        let mut add = |id| {
            let mut one: CUlaunchAttribute = unsafe { std::mem::zeroed() };
            one.id = id;
            made.push(one);
            made.len() - 1
        };
        let [x, y, z] = sizes(self.entry, "cluster", 0)?;
        let cluster = (x * y * z > 1)
            .then(|| add(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION));
        let early = flag(self.entry, "programmatic").then(|| {
            add(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
        });
        let together = flag(self.entry, "cooperative")
            .then(|| add(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE));
        if let Some(i) = cluster {
            made[i].value.clusterDim = CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
        }
        if let Some(i) = early {
            made[i].value.programmaticStreamSerializationAllowed = 1;
        }
        if let Some(i) = together {
            made[i].value.cooperative = 1;
        }
        Ok(made)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // it fails only where the context is lost, and then everything is
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// The elements of a tensor, by the names that safetensors has for types.
fn numbers(kind: &str, data: &[u8]) -> Result<Vec<f64>> {
    let halves = || data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let words = || data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(match kind {
        "F32" => words().map(|bits| f64::from(f32::from_bits(bits))).collect(),
        "I32" => words().map(|bits| f64::from(bits as i32)).collect(),
        "U16" => halves().map(f64::from).collect(),
        "BF16" => halves().map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16))).collect(),
        "F16" => halves().map(half).collect(),
        _ => return Err(format!("no vector has the type {kind}").into()),
    })
}

fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    sign * match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
    }
}

/// Runs an entry on one vector; tells whether the result is as near as it must be.
fn run(folder: &Path, program: &Program, record: &Value, stream: &CudaStream) -> Result<bool> {
    let (bytes, m) = (std::fs::read(folder.join(text(record, "file")?))?, number(record, "M")?);
    let tensors = SafeTensors::deserialize(&bytes)?;
    let expected = tensors.tensor("expected")?;
    let kind = format!("{:?}", expected.dtype());
    let want = numbers(&kind, expected.data())?;
    let out_kind = text(record, "out")?;
    let mut got = vec![0u8; want.len() * if out_kind == "I32" { 4 } else { 2 }];
    let mut buffers = HashMap::new();
    let mut out = 0;
    for parameter in list(program.entry, "parameters")? {
        let name = text(parameter, "name")?;
        let address = match parameter["access"].as_str() {
            None => continue,
            Some("read") => on_gpu(tensors.tensor(name)?.data())?,
            Some("write") => {
                out = on_gpu(&vec![0xff; got.len()])?;
                out
            }
            // zero before the first launch; every launch leaves it as the next one needs it
            _ => on_gpu(&vec![0; evaluate(&record["workspace"][name], m)? as usize])?,
        };
        buffers.insert(name.to_string(), address);
    }
    unsafe { program.launch(record, m, &buffers, stream)? };
    stream.synchronize()?;
    unsafe { result::memcpy_dtoh_sync(&mut got, out)? };
    for address in buffers.into_values() {
        unsafe { result::free_sync(address)? };
    }
    compare(program, record, &numbers(out_kind, &got)?, &want)
}

fn on_gpu(data: &[u8]) -> Result<CUdeviceptr> {
    let address = unsafe { result::malloc_sync(data.len().max(1))? };
    unsafe { result::memcpy_htod_sync(address, data)? };
    Ok(address)
}

fn compare(program: &Program, record: &Value, got: &[f64], want: &[f64]) -> Result<bool> {
    let off: Vec<f64> = got.iter().zip(want).map(|(g, w)| (g - w).abs()).collect();
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let peak = |values: &[f64]| values.iter().fold(0f64, |most, v| most.max(v.abs()));
    let finite = got.iter().all(|value| value.is_finite());
    let rel = norm(&off) / norm(want).max(1e-300);
    let max = peak(&off) / peak(want).max(1e-300);
    let bound = |name: &str| record["tolerance"][name].as_f64().unwrap_or(0.0);
    let ok = finite && rel <= bound("rel") && max <= bound("max");
    let (word, symbol) = (if ok { "ok" } else { "MISMATCH" }, text(program.entry, "symbol")?);
    println!("{word:9} {symbol}  rel_error {rel:.1e}  max_error {max:.1e}");
    Ok(ok)
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).ok_or("usage: run-export DIR")?;
    let folder = Path::new(&folder);
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json"))?)?;
    let schema = number(&manifest, "schema")?;
    if schema != SCHEMA {
        return Err(format!("this reads schema {SCHEMA}; the manifest has schema {schema}").into());
    }
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let mut wrong = 0;
    for entry in list(&manifest, "entries")? {
        let program = Program::load(folder, entry)?;
        for record in list(entry, "vectors")? {
            wrong += usize::from(!run(folder, &program, record, &stream)?);
        }
    }
    if wrong > 0 {
        return Err(format!("{wrong} vectors do not agree").into());
    }
    Ok(())
}
