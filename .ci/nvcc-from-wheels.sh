# Source this where a machine has no nvcc: it brings CUDA 13.0's compiler as Python wheels (about 110 MB) into
# build/nvcc, with the links that CMake expects of a toolkit, and sets CUDACXX.
#
#   source .ci/nvcc-from-wheels.sh && make build NCG_CUDA=ON
NCG_NVCC_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/nvcc"
if [ ! -x "$NCG_NVCC_ROOT/nvidia/cu13/bin/nvcc" ]; then
  echo "Fetching CUDA's compiler as Python wheels ..."
  # no dependencies: nvcc's wheel asks for nothing that the list does not have
  "${PYTHON:-python3}" -m pip install --quiet --no-deps --target "$NCG_NVCC_ROOT" --upgrade \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*' \
    'nvidia-nvvm==13.0.*' || return 1
fi
# what a toolkit has and the wheels lack
ln -sfn lib "$NCG_NVCC_ROOT/nvidia/cu13/lib64"
ln -sf libcudart.so.13 "$NCG_NVCC_ROOT/nvidia/cu13/lib/libcudart.so"
export CUDACXX="$NCG_NVCC_ROOT/nvidia/cu13/bin/nvcc"
chmod +x "$NCG_NVCC_ROOT"/nvidia/cu13/bin/* "$NCG_NVCC_ROOT"/nvidia/cu13/nvvm/bin/* 2>/dev/null || true
"$CUDACXX" --version | tail -n 2 | head -n 1
