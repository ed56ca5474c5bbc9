//go:build cuda && cgo

package cuda

const reason = "this version of longctx has no CUDA kernels yet; use package cpu"
