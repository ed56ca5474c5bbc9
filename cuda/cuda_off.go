//go:build !cuda || !cgo

package cuda

const reason = "built without tag cuda or without cgo, and this version of longctx has no CUDA kernels yet; use package cpu"
