// Package simtest builds the kernels for the host simulator with the C++
// compiler of the machine, as they stand and with bugs planted, and looks that
// the first are right and that each of the others is caught.
package simtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// build compiles a harness with edit applied to the text of each source, by
// name, and returns the program.
func build(t *testing.T, harness string, edit func(name, text string) string) string {
	compiler := os.Getenv("CXX")
	if compiler == "" {
		compiler = "g++"
	}
	if _, err := exec.LookPath(compiler); err != nil {
		t.Skipf("no C++ compiler: %v", err)
	}
	dir := t.TempDir()
	for _, from := range []string{"../../kernels", "../../sim", "../harness"} {
		to := filepath.Join(dir, filepath.Base(from))
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(from, "*.*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Base(f)
			if err := os.WriteFile(filepath.Join(to, name), []byte(edit(name, string(text))), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	program := filepath.Join(dir, "harness.exe") // not optimised: it is compiled more often than run
	args := []string{"-std=c++17", "-O0", "-ffp-contract=off", "-Wall", "-Wextra", "-DLONGCTX_SIM", "-I", filepath.Join(dir, "kernels"),
		"-o", program, filepath.Join(dir, "sim", "sim.cpp"), filepath.Join(dir, "harness", harness), "-lpthread"}
	if out, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, out)
	}
	return program
}

func asItStands(_, text string) string { return text }

// run starts a program under an order of warps, looking for races or not, and
// returns what it said and whether it found nothing wrong.
func run(t *testing.T, program, seed, race string) (said string, ok bool) {
	cmd := exec.Command(program, "attention")
	cmd.Env = append(os.Environ(), "LONGCTX_SIM_SEED="+seed, "LONGCTX_SIM_RACE="+race)
	out, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], err == nil
}

// TestOrders: the kernels give the bits of the rules in whatever order warps
// and lanes run, and no two threads meet without a barrier.
func TestOrders(t *testing.T) {
	for _, harness := range []string{"harness.cpp", "gradient.cpp", "scores.cpp", "scan.cpp"} {
		t.Run(harness, func(t *testing.T) { orders(t, build(t, harness, asItStands)) })
	}
}

func orders(t *testing.T, program string) {
	for _, seed := range []string{"0", "1", "2", "3", "4", "5", "6", "7"} {
		for _, race := range []string{"0", "1"} {
			if said, ok := run(t, program, seed, race); !ok {
				t.Errorf("seed %s, race %s: %s", seed, race, said)
			}
		}
	}
}

// bug is an error that somebody might make. By is what has to catch it: "bits"
// (some order of warps gives other results), "sync" (a deadlock or divergence),
// "address", or "race" (only the search for races is sure to see it).
type bug struct {
	name, file, old, new string
	by                   string
}

var bugs = []bug{
	{"no barrier between loading keys and dot", "attention.cuh", "sync();\n\t\t\t\tdot(x);", "dot(x);", "bits"},
	{"no barrier between dot and the values", "attention.cuh", "\t\tsync(); // the keys are read\n", "", "bits"},
	{"no barrier after the places", "attention.cuh", "sync(); // the places are there", ";", "bits"},
	{"no barrier after the masks", "attention.cuh", "return sync_or(found);", "return true;", "bits"},
	{"no barrier between parts of a tile", "attention.cuh", "\t\t\tif (x > 0)\n\t\t\t\tsync();\n", "", "bits"},
	{"no barrier after the weights", "attention.cuh", "bool careful = sync_or(!finite);", "bool careful = !finite;", "bits"},
	{"no barrier in the merge of chunks", "attention.cuh", "\t\tsync();\n\t\tif (sums() >= 0)\n\t\t\tl = fma_(", "\t\tif (sums() >= 0)\n\t\t\tl = fma_(", "bits"},
	{"values taken before they have landed", "attention.cuh", "\t\tcopy_wait();\n\t\tUNROLL_BY(2)", "\t\tUNROLL_BY(2)", "bits"},
	{"values asked for over keys that are still read", "attention.cuh", "bool early = Parts == 1 && p.value.dtype != lc_f32;", "bool early = Parts == 1;", "bits"},
	{"keys of the wrong places", "attention.cuh", "fetch(p.key, p.head_dim, side ^ 1, 0, count(ahead));", "fetch(p.key, p.head_dim, side, 0, count(ahead));", "bits"},
	{"a ring that is waited for too late", "decode.cuh", "copy_wait();\n\t\tsync_warp(); // all of it", "copy_wait_but<1>();\n\t\tsync_warp(); // all of it", "bits"},
	{"a ring without a barrier", "decode.cuh", "\t\tsync_warp(); // all of it is there, and what came before is read\n", "", "race"},
	{"a ring with a tile too few", "params.h", "+ 2 * lc_tile * lc_decode_stride", "+ lc_tile * lc_decode_stride", "address"},
	{"no barrier before the weights of a chunk", "decode.cuh", "\t\tsync_warp(); // the maxima are there; and the words have been read, for the next chunk\n", "", "race"},
	{"a tile that is thought to be whole", "decode.cuh", "(all == ~0ull ? 1u : 0u)", "1u", "bits"},
	{"a tile that no row sees", "decode.cuh", "if (any != 0)", "if (any != 0 && n != 1)", "bits"},
	{"codes, and no barrier after their bits", "decode_coded.cuh", "\t\tsync_warp(); // the bits are there\n", "", "race"},
	{"codes, and no barrier after the channels", "decode_coded.cuh", "\t\tsync_warp(); // the channels are there\n", "", "race"},
	{"codes with the scales of another page", "decode_coded.cuh", "channels + page(n, j < end ? j : end - 1) * Row", "channels", "bits"},
	{"codes with the groups of another key", "decode_coded.cuh", "behind(k) + 2 * groups * from", "behind(k)", "bits"},
	{"codes in place of plain keys", "decode_coded.cuh", "if (!(bits >> (lane + 32 * h) & 1))", "if (false)", "bits"},
	{"codes of values that have another nibble", "decode_coded.cuh", "shift[u] = d / eighth;", "shift[u] = d / eighth ^ 1;", "bits"},
	{"codes with too little room for groups", "params.h", "2 * lc_decode_groups(dim", "lc_decode_groups(dim", "address"},
	{"a barrier that half the block passes", "attention.cuh", "\t\tsync(); // the keys are read\n", "\t\tif (tid < 64)\n\t\t\tsync();\n", "bits"},
	{"a barrier that half a warp passes", "attention.cuh", "\t\tsync(); // the keys are read\n", "\t\tif (tid % 32 < 16 || !whole)\n\t\t\tsync();\n", "sync"},
	{"a shuffle in a branch", "attention.cuh", "top = max_(top, shuffle_xor(top, x));", "if (i < 8) top = max_(top, shuffle_xor(top, x));", "sync"},
	{"a shuffle too few", "attention.cuh", "for (int x = 8; x > 0; x /= 2)", "for (int x = 4; x > 0; x /= 2)", "bits"},
	{"lanes in another order", "attention.cuh", "r * score_floats + i + 16 * c, w >>", "r * score_floats + 4 * i + c, w >>", "bits"},
	{"keys past the end of the block table", "attention.cuh", "if (tid >= count(j0))\n", "if (tid >= lc_tile)\n", "address"},
	{"values behind the mask", "attention.cuh", "if (careful && !whole)", "if (false)", "bits"},
	{"a row's features past its end", "attention.cuh", "if (r < rows)\n\t\t\t\tx = load4", "x = load4", "address"},
	{"chunks merged backwards", "merge.cuh", "part + r * p.part_dim + d, stride, n)", "part + (n - 1) * stride + r * p.part_dim + d, -stride, n)", "bits"},
	{"maxima of the parts without a barrier", "merge.cuh", "\t\tstore_shared(s.top + side + tid, x);\n\t\tsync();", "\t\tstore_shared(s.top + side + tid, x);", "race"},
	{"gradient: no barrier before a slice is overwritten", "gradient.cuh", "\t\t\tsync(); // the last slice is read\n", "", "bits"},
	{"gradient: no barrier between loading a slice and its products", "gradient.cuh", "\t\t\tsync();\n\t\t\tint have", "\t\t\tint have", "bits"},
	{"gradient: no barrier after the weights", "gradient.cuh", "\t\tweigh();\n\t\tsync();\n", "\t\tweigh();\n", "race"},
	{"gradient: no barrier before the weights of a Term", "gradient.cuh", "\t\tsync(); // w is read\n", "", "bits"},
	{"gradient: no barrier before rows are turned back", "gradient.cuh", "store_global((float4 *)(turned(term, keys ? 8 * gr + k : gr + 8 * k) + slice * x + 4 * i), load_global((const float4 *)sum(term * head_slices() + x, k)));\n\t\tsync();", "store_global((float4 *)(turned(term, keys ? 8 * gr + k : gr + 8 * k) + slice * x + 4 * i), load_global((const float4 *)sum(term * head_slices() + x, k)));", "bits"},
	{"gradient: keys in the order of the products", "gradient.cuh", "turned(term, keys ? 8 * gr + k : gr + 8 * k)", "turned(term, gr + 8 * k)", "bits"},
	{"gradient: weights of hidden pairs", "gradient.cuh", "if (sync_or(!rows_of(t, d0, features, v)))", "rows_of(t, d0, features, v); sync(); if (false)", "bits"},
	{"gradient: rows past the end", "gradient.cuh", "if (r < rows && d0 + d < features) {", "if (d0 + d < features) {", "address"},
	{"gradient: queries before the window", "gradient.cuh", "bool here = tid < rows && tid >= first;", "bool here = tid < rows;", "bits"},
	{"gradient: too little shared memory", "params.h", "(2 + terms) * 64) + 8 * 64 * (2 + terms); }", "(2 + terms) * 64) + 8 * 64 * (1 + terms); }", "address"},
	{"scores: no barrier before a slice is overwritten", "scores.cuh", "\t\t\tsync(); // the last slice is read, the places are there\n", "", "bits"},
	{"scores: no barrier after a slice", "scores.cuh", "\t\t\tload_keys(c0, n);\n\t\t\tsync();\n", "\t\t\tload_keys(c0, n);\n", "bits"},
	{"scores: keys past the end", "scores.cuh", "if (thread_index() < have) {", "if (thread_index() < lc_tile) {", "address"},
	{"scores: rows of another token", "scores.cuh", "end = (token + 1) * p.group;", "end = all;", "bits"},
	{"scores: too little shared memory", "params.h", "4 * (rows + lc_tile) * 68 + 8 * lc_tile; }", "4 * (rows + lc_tile) * 68; }", "address"},
	{"scores: no barrier before other parts", "scores.cuh", "\t\t\t\tsync(); // the last scores are read\n", "", "bits"},
	{"scores: no barrier before gradients", "loss.cuh", "\t\t\tsync(); // and read\n", "", "bits"},
	{"scores: no barrier before the differences", "loss.cuh", "\t\t\tsync(); // the differences are there\n", "", "bits"},
	{"scores: gradients of scores that were set to 0", "loss.cuh", "zeroed >> (4 * a + c) & 1 ? 0.0f : mul_", "mul_", "bits"},
	{"scan: no barrier after the gates", "scan.cuh", "\t\t\tsync(); // the gates are there, what was before is read\n\t\t\tfill(a", "\t\t\tfill(a", "bits"},
	{"scan: no barrier before the state is read", "scan.cuh", "\t\t\tsync();\n\t\t\tadd_weighted<all_weights>(o, a, z", "\t\t\tadd_weighted<all_weights>(o, a, z", "bits"},
	{"scan: no barrier between levels", "scan.cuh", "\t\tsync(); // the last level is read\n", "", "bits"},
	{"scan: no barrier before the weights", "scan.cuh", "\t\tsync(); // queries and keys are read\n", "", "bits"},
	{"scan: factors to the wrong side of a boundary", "scan.cuh", "second ? decayed(mid, at) : decayed(at, mid)", "decayed(at, mid)", "bits"},
	{"scan: a bonus that comes a token late", "scan.cuh", "sum(r + 1 - (second ? shift : 0), d + e)", "sum(r + 1, d + e)", "bits"},
	{"scan: no barrier between what is solved", "scan.cuh", "\t\t\t\tstore_shared((float4 *)(u + r * slice_row + 4 * i), o);\n\t\t\t}\n\t\t\tsync();", "\t\t\t\tstore_shared((float4 *)(u + r * slice_row + 4 * i), o);\n\t\t\t}", "bits"},
	{"scan: the state of the first chunk for all", "scan.cuh", "\t\t\tfirst = false;\n", "", "bits"},
	{"scan: too little shared memory", "params.h", "(channels ? 65 * 64 : 66)", "(channels ? 64 * 64 : 66)", "address"},
	{"too little shared memory", "params.h", "+ 6 * rows +", "+ 2 * rows +", "address"},
}

// TestPlantedBugs: each bug is caught, under some order of warps.
func TestPlantedBugs(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the kernels once for each bug")
	}
	for _, b := range bugs {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			planted := 0
			harness := "harness.cpp"
			if name, _, ok := strings.Cut(b.name, ": "); ok {
				harness = name + ".cpp"
			}
			program := build(t, harness, func(name, text string) string {
				if name == b.file {
					planted += strings.Count(text, b.old)
					text = strings.ReplaceAll(text, b.old, b.new)
				}
				return text
			})
			if planted != 1 {
				t.Fatalf("the text to change is %d times in %s, want once", planted, b.file)
			}
			said, caught := "", false
			for _, seed := range []string{"0", "1", "2", "3"} {
				if line, ok := run(t, program, seed, "0"); !ok {
					said, caught = line, true
				}
			}
			line, ok := run(t, program, "1", "1")
			switch {
			case !caught && b.by != "race":
				t.Errorf("no order of warps shows it (races looked for: %s)", line)
			case ok:
				t.Errorf("not caught when races are looked for, by results: %s", said)
			case b.by == "sync" && !strings.Contains(line, "error 4"), b.by == "address" && !strings.Contains(line, "error 2") && !strings.Contains(line, "error 3"),
				b.by == "race" && !strings.Contains(line, "error 5"):
				t.Errorf("caught as %q, want %s", line, b.by)
			}
			t.Logf("by result: %s; with races looked for: %s", said, line)
		})
	}
}

// TestExact: the scalar functions of the kernels have the bits of kernel/exact.go
// and of package tensor.
func TestExact(t *testing.T) {
	program := build(t, "harness.cpp", asItStands)
	if bad, values := exactDiffers(t, program); bad != "" {
		t.Errorf("of %d values:%s", values, bad)
	}
	program = build(t, "harness.cpp", func(name, text string) string {
		return strings.Replace(text, "q = fma_(q, r, 1.0f);", "q = add_(mul_(q, r), 1.0f);", 1)
	})
	if bad, _ := exactDiffers(t, program); bad == "" {
		t.Error("a product of two roundings in E is not seen")
	}
}

// exactDiffers runs the scalar functions of a program and describes values at
// which they are wrong.
func exactDiffers(t *testing.T, program string) (text string, values int) {
	var in []uint32
	for u := uint64(0); u < 1<<32; u += 65521 * 17 { // a prime stride: all exponents, both signs
		in = append(in, uint32(u))
	}
	for h := range uint32(1 << 16) {
		in = append(in, h<<16|h) // every 16-bit type, every 8-bit type
	}
	for _, x := range []float32{0, 1, -1, -125, -124.99999, -125.00001, -126, 0.625, -0.625, 0.62499994, 65504, 65519.996, 65520, 0x1p-24, 0x1p-25, 0x1.000002p-25, math.Sqrt2} {
		in = append(in, math.Float32bits(x), math.Float32bits(-x))
	}
	for x := float32(-130); x < 0; x += 0.0137 {
		in = append(in, math.Float32bits(x), math.Float32bits(x/16), math.Float32bits(-x))
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, in); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "exact")
	cmd.Stdin = &b
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := make([][9]uint32, len(in))
	if err := binary.Read(bytes.NewReader(out), binary.NativeEndian, got); err != nil {
		t.Fatal(err)
	}
	bad := 0
	for k, u := range in {
		x := math.Float32frombits(u)
		want := [9]uint32{
			math.Float32bits(kernel.Exp2(x)), math.Float32bits(kernel.Log2(x)), math.Float32bits(kernel.Tanh(x)),
			math.Float32bits(tensor.F16ToF32(uint16(u))), math.Float32bits(tensor.BF16ToF32(uint16(u))),
			math.Float32bits(tensor.F8E4M3ToF32(uint8(u))), math.Float32bits(tensor.F8E5M2ToF32(uint8(u))),
			uint32(tensor.F32ToF16(x)), uint32(tensor.F32ToBF16(x)),
		}
		for f, w := range want {
			g := got[k][f]
			switch {
			case f == 0 && !(x <= 0) && x == x, f == 1 && !(x >= 0x1p-126 && x <= math.MaxFloat32):
				continue // outside the domain
			case g == w, f < 7 && isNaN(g) && isNaN(w), f == 7 && g&0x7fff > 0x7c00 && w&0x7fff > 0x7c00, f == 8 && g&0x7fff > 0x7f80 && w&0x7fff > 0x7f80:
				continue
			}
			if bad++; bad < 10 {
				text += fmt.Sprintf("\nfunction %d of %v (%#08x) is %#08x, want %#08x", f, x, u, g, w)
			}
		}
	}
	return text, len(in)
}

func isNaN(u uint32) bool { return u&0x7fffffff > 0x7f800000 }
