package kernels

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/longctx/longctx/kernel"
)

// GGML is the test-backend-ops that ggml's build leaves in its folder bin. It
// times operations that a file describes (perf -o FLASH_ATTN_EXT -b CPU
// --test-file FILE), so that its cases are ours: queries and outputs are F32,
// heads lie one after another. It has no causal mask, only random ones, and
// attends to the same keys again and again. Threads are bounded by OpenMP's
// environment: ggml must have been built with OpenMP, as it is by default.
type GGML struct {
	path   string
	max    time.Duration // of a run
	op     int           // FLASH_ATTN_EXT in this version's enum ggml_op
	folder string
}

const ggmlName = "ggml"

// StartGGML tries the binary at path; a run of a case may take about max. The
// error says what it did instead.
func StartGGML(ctx context.Context, path string, max time.Duration) (*GGML, error) {
	folder, err := os.MkdirTemp("", "longctx-ggml-")
	if err != nil {
		return nil, err
	}
	g := &GGML{path: path, max: max, folder: folder}
	if g.op, err = g.findOp(ctx); err != nil {
		g.Close()
		return nil, fmt.Errorf("ggml: %w", err)
	}
	return g, nil
}

// Close removes the temporary folder.
func (g *GGML) Close() error { return os.RemoveAll(g.folder) }

// ggmlOps is above the number that FLASH_ATTN_EXT has in any version so far,
// and not above the number of operations: the binary does not check.
const ggmlOps = 90

// findOp asks the binary which number FLASH_ATTN_EXT has, for it differs from
// version to version: of one small operation under every number, it runs those
// whose name it was given.
func (g *GGML) findOp(ctx context.Context) (int, error) {
	var file strings.Builder
	small := Case{Kind: Decode, KV: Types[1], HeadDim: 64, Heads: 1, KVHeads: 1, Length: 64}
	for op := 1; op < ggmlOps; op++ {
		fmt.Fprintln(&file, ggmlLine(op, small, fmt.Sprintf("op%d", op), 0, 0))
	}
	out, err := g.run(ctx, "support", file.String(), 1)
	if m := ggmlProbe.FindStringSubmatch(out); m != nil {
		return strconv.Atoi(m[1])
	}
	if err == nil {
		err = fmt.Errorf("it knows no FLASH_ATTN_EXT in %q", firstLine(out))
	}
	return 0, fmt.Errorf("%s does not work as test-backend-ops with --test-file: %w", g.path, err)
}

var ggmlProbe = regexp.MustCompile(`FLASH_ATTN_EXT\(name=op(\d+),`)

// run runs the binary on a file of operations.
func (g *GGML) run(ctx context.Context, mode, operations string, threads int) (string, error) {
	file := filepath.Join(g.folder, "operations.txt")
	if err := os.WriteFile(file, []byte(operations), 0o600); err != nil {
		return "", err
	}
	c := exec.CommandContext(ctx, g.path, mode, "-b", "CPU", "-o", "FLASH_ATTN_EXT", "--test-file", file)
	c.Env = append(os.Environ(), "OMP_THREAD_LIMIT="+strconv.Itoa(threads), "GGML_NO_BACKTRACE=1")
	c.WaitDelay = time.Second
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil && errs.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, firstLine(errs.String()))
	}
	return out.String(), err
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// ggmlLine describes an operation as test-backend-ops reads it: number, type
// and shape of the result, parameters, sources with shapes and strides (0: one
// after another), name. A gap is a stride of the heads of Query in bytes.
func ggmlLine(op int, c Case, name string, scale float32, gap int64) string {
	const f32, precF32 = 0, 10
	strides := "0 0 0 0"
	if gap > 0 {
		strides = fmt.Sprintf("4 %d %d %d", 4*c.HeadDim, gap, gap*int64(c.Heads))
	}
	keys := fmt.Sprintf("%d %d %d %d 1 0 0 0 0", c.KV.GGML, c.HeadDim, c.Length, c.KVHeads)
	return fmt.Sprintf("%d %d %d %d %d 1 4 %d 0 0 %d 3 %d %d %d %d 1 %s %s %s %s", op, f32, c.HeadDim, c.Heads, c.Queries(),
		int32(math.Float32bits(scale)), precF32, f32, c.HeadDim, c.Queries(), c.Heads, strides, keys, keys, name)
}

// The binary repeats an operation, before it looks at the clock, until its
// tensors add up to 8 GiB, though for attention over long sequences once would
// do. A gap between the heads of Query, memory that nothing touches, counts.
const (
	ggmlRepeat = 8 << 30
	ggmlWhile  = 1 // second, after which it stops anyway
)

// ggmlRate is about how many FLOP a second a thread does at most: of prefill,
// it has tiles for F32 and F16 only.
func ggmlRate(c Case) float64 {
	if c.Kind == Prefill && c.KV.GGML <= 1 {
		return 60e9
	}
	return 10e9
}

func ggmlGap(c Case) int64 {
	runs := math.Ceil(ggmlWhile * ggmlRate(c) * float64(c.Threads) / c.FLOP())
	if c.Heads == 1 || float64(ggmlRepeat)/c.Bytes() <= runs {
		return 0
	}
	return (ggmlRepeat/int64(runs)/int64(c.Heads-1) + 63) &^ 63
}

// Contenders is one, or a Note that the case has no counterpart.
func (g *GGML) Contenders(ctx context.Context, c Case, _ int) ([]*Contender, error) {
	switch {
	case c.KV.GGML < 0 || c.KV.Codec != kernel.NoCodec && c.HeadDim%32 != 0: // its blocks are 32 features
		return []*Contender{without(ggmlName, "", fmt.Errorf("no counterpart: it has no %v of %d features", c.KV, c.HeadDim))}, nil
	case c.Kind == Backward:
		return []*Contender{without(ggmlName, "", errors.New("no counterpart: it has no gradients of attention on a CPU"))}, nil
	case c.Kind == Prefill && c.Causal:
		return []*Contender{without(ggmlName, "", errors.New("no counterpart: its masks are random; see full"))}, nil
	}
	// it runs three times at least
	if err := fits(c, ggmlRate(c)/3, g.max); err != nil {
		return []*Contender{without(ggmlName, "", err)}, nil
	}
	line := ggmlLine(g.op, c, "case", float32(1/math.Sqrt(float64(c.HeadDim))), ggmlGap(c))
	contender := without(ggmlName, "", errors.New(""))
	contender.Alone = true
	contender.Time = func(ctx context.Context, _ int) (float64, error) {
		out, err := g.run(ctx, "perf", line+"\n", c.Threads)
		if err != nil {
			return 0, err
		}
		return parseGGML(out)
	}
	return []*Contender{contender}, nil
}

var ggmlTime = regexp.MustCompile(`FLASH_ATTN_EXT\(name=case,.*\):\s+(\d+) runs -\s+([0-9.]+) us/run`)

// parseGGML reads the seconds of a run from what perf prints.
func parseGGML(out string) (float64, error) {
	m := ggmlTime.FindStringSubmatch(out)
	if m == nil {
		for line := range strings.SplitSeq(out, "\n") {
			if strings.Contains(line, "FLASH_ATTN_EXT(") && strings.HasSuffix(strings.TrimSpace(line), "not supported") {
				return 0, errors.New("no counterpart: not supported by its CPU backend")
			}
		}
		return 0, fmt.Errorf("no time in its output: %q", firstLine(out))
	}
	us, err := strconv.ParseFloat(m[2], 64)
	if err != nil || !(us > 0) {
		return 0, fmt.Errorf("its time is %q us, want more than 0", m[2])
	}
	return us / 1e6, nil
}
