package model

import (
	"math"
	"runtime"
	"sync"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

func general(data []float32, rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

// linear sets y [rows, w.Rows] = x [rows, w.Cols]·wᵀ.
func linear(y, x []float32, rows int, w *Param) { product(y, x, rows, w, 0) }

// addLinear adds x·wᵀ to y.
func addLinear(y, x []float32, rows int, w *Param) { product(y, x, rows, w, 1) }

func product(y, x []float32, rows int, w *Param, beta float32) {
	blas32.Gemm(blas.NoTrans, blas.Trans, 1, general(x, rows, w.Cols), general(w.Data, w.Rows, w.Cols), beta, general(y, rows, w.Rows))
}

// parallel calls f for ranges that make up 0 <= i < n, on all processors.
func parallel(n int, f func(lo, hi int)) {
	workers := min(runtime.GOMAXPROCS(0), n/16)
	if workers <= 1 {
		f(0, n)
		return
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() { f(n*w/workers, n*(w+1)/workers) })
	}
	wg.Wait()
}

// rmsNorm sets y = x·w/√(mean x² + eps), row by row, and rstd, if not nil, to
// the reciprocal roots.
func rmsNorm(y, x, rstd []float32, w *Param, eps float64) {
	n := w.Cols
	parallel(len(x)/n, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			xr, yr := x[r*n:][:n], y[r*n:][:n]
			sum := 0.0
			for _, v := range xr {
				sum += float64(v) * float64(v)
			}
			s := float32(1 / math.Sqrt(sum/float64(n)+eps))
			for i, v := range xr {
				yr[i] = v * s * w.Data[i]
			}
			if rstd != nil {
				rstd[r] = s
			}
		}
	})
}

func sigmoid(x float32) float32 { return float32(1 / (1 + math.Exp(-float64(x)))) }

// swiGLU sets y [rows, n] = silu(g)·u for rows (g, u) of gu [rows, 2n].
func swiGLU(y, gu []float32, rows, n int) {
	parallel(rows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			g, u := gu[2*r*n:][:n], gu[(2*r+1)*n:][:n]
			yr := y[r*n:][:n]
			for i, v := range g {
				yr[i] = v * sigmoid(v) * u[i]
			}
		}
	})
}

// resize returns s with length n, in its own memory where it suffices.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
