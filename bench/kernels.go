package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/longctx/longctx/backend"
	"github.com/longctx/longctx/bench/internal/atomicfile"
	"github.com/longctx/longctx/bench/internal/kernels"
	"github.com/longctx/longctx/bench/internal/report"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

// kernelFlags are the flags of kernels.
type kernelFlags struct {
	backend          string
	axes             kernels.Axes
	variants         []string
	policies         []kernel.Policy
	quick, full      bool
	torch            bool
	python, ggml     string
	time, max        time.Duration
	json, plot, only string
}

// Memory for the roof of reading is more than caches hold.
var (
	roofBytes = int64(2 << 30)
	roofTime  = time.Second
)

// quickLimit is when -quick begins no further case.
const quickLimit = 38 * time.Second

func parseKernels(std streams, args []string) (*kernelFlags, error) {
	o := &kernelFlags{}
	f := newFlags(std, "kernels", "Times prefill, decode and backward beside the roofs of this machine, and checks each result\n"+
		"against a float64 reference first. By default one thing at a time varies around\n"+
		"the base case (128 features, 4 query heads to a KV head; prefill F32 and causal;\n"+
		"decode F16 over pages), over all lengths and threads. Ctrl-C prints what is\n"+
		"finished. What is counted: go doc ./bench/internal/kernels")
	list := map[string]*string{}
	for _, l := range [][3]string{
		{"kinds", "prefill,decode", "prefill, decode, backward"},
		{"lengths", "", "keys, such as 4k,1m (default 1k to 128k, decode to 1m; with -quick 1k,4k and 4k,32k)"},
		{"dims", "64,128,256", "features of a head"},
		{"gqa", "1,4,8", "query heads to a KV head"},
		{"dtypes", typeNames(), "element types of keys and values"},
		{"pages", "64,0", "tokens to a page in decode; 0: contiguous"},
		{"causal", "true,false", "masks of prefill and backward: true, false (full)"},
		{"threads", defaultThreads(), "goroutines that compute"},
		{"policies", "exact,fast", "exact, fast"},
		{"variants", "best", "leaf loops, or best, or all: " + strings.Join(cpu.Variants(), ", ")},
	} {
		list[l[0]] = f.String(l[0], l[1], l[2])
	}
	f.StringVar(&o.backend, "backend", "cpu", "cpu, or cuda: the device, its own roofs, PyTorch on it; no -variants, -threads, -ggml")
	f.BoolVar(&o.quick, "quick", false, "few cases: under 50 s on two cores")
	f.BoolVar(&o.full, "full", false, "every combination of what is listed")
	f.BoolVar(&o.torch, "peers", false, "time PyTorch too (flash and math), and ggml if -ggml is given")
	f.StringVar(&o.python, "python", "python3", "the Python that has torch")
	f.StringVar(&o.ggml, "ggml", "", "`path` of ggml's test-backend-ops, to be timed too")
	f.DurationVar(&o.time, "time", time.Second, "measuring time of each contender of a case (with -quick 100ms)")
	f.DurationVar(&o.max, "max", 20*time.Second, "leave out what takes longer in a single run (with -quick 500ms)")
	f.StringVar(&o.only, "case", "", "only cases whose name contains this `text`")
	f.StringVar(&o.json, "json", "", "`file` for the results, as JSON")
	f.StringVar(&o.plot, "plot", "", "`file` for the roofline plot, a PNG")
	if err := parse(f, args); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	f.Visit(func(x *flag.Flag) { given[x.Name] = true })
	if o.quick && !given["time"] {
		o.time = 100 * time.Millisecond
	}
	if o.quick && !given["max"] {
		o.max = 500 * time.Millisecond
	}
	if o.quick && !given["policies"] {
		*list["policies"] = "exact"
	}
	if err := o.onDevice(given, list); err != nil {
		return nil, err
	}
	if o.time <= 0 || o.max <= 0 {
		return nil, fmt.Errorf("-time is %v and -max %v, want more than 0", o.time, o.max)
	}
	return o, o.lists(list)
}

// onDevice checks what a device takes, and sets what is else for it.
func (o *kernelFlags) onDevice(given map[string]bool, list map[string]*string) error {
	switch o.backend {
	case "cpu":
		return nil
	case "cuda":
	default:
		return fmt.Errorf("-backend is %q, want cpu or cuda", o.backend)
	}
	for _, name := range []string{"variants", "threads", "ggml"} {
		if given[name] {
			return fmt.Errorf("-%s is given with -backend cuda, want one without the other", name)
		}
	}
	*list["threads"] = "0"
	if !given["policies"] {
		*list["policies"] = "exact" // Fast computes the same
	}
	return nil
}

// lists reads the flags that are lists.
func (o *kernelFlags) lists(text map[string]*string) error {
	number := func(low, high int) func(string) (int, error) {
		return func(word string) (int, error) {
			n, err := kernels.ParseSize(word)
			if err == nil && (n < low || n > high) {
				err = fmt.Errorf("%d, want %d to %d", n, low, high)
			}
			return n, err
		}
	}
	threads, err := each("threads", *text["threads"], number(0, 256))
	if err == nil && o.backend == "cpu" && slices.Contains(threads, 0) {
		err = fmt.Errorf("-threads is %q: 0, want 1 to 256", *text["threads"])
	}
	if err != nil {
		return err
	}
	o.axes = kernels.Default(threads)
	if o.quick {
		o.axes = kernels.Quick(threads)
	}
	if *text["lengths"] != "" {
		if o.axes.PrefillLengths, err = each("lengths", *text["lengths"], number(1, 1<<24)); err != nil {
			return err
		}
		o.axes.DecodeLengths = o.axes.PrefillLengths
	}
	variants := *text["variants"]
	if strings.TrimSpace(variants) == "all" {
		variants = strings.Join(cpu.Variants(), ",")
	}
	var errs [8]error
	o.axes.Kinds, errs[0] = each("kinds", *text["kinds"], parseKind)
	o.axes.HeadDims, errs[1] = each("dims", *text["dims"], number(1, kernel.MaxHeadDim))
	o.axes.Groups, errs[2] = each("gqa", *text["gqa"], number(1, kernel.MaxHeads/8))
	o.axes.Types, errs[3] = each("dtypes", *text["dtypes"], kernels.ParseType)
	o.axes.PageSizes, errs[4] = each("pages", *text["pages"], number(0, 1<<16))
	o.axes.Causal, errs[5] = each("causal", *text["causal"], strconv.ParseBool)
	o.policies, errs[6] = each("policies", *text["policies"], parsePolicy)
	o.variants, errs[7] = each("variants", variants, parseVariant)
	return errors.Join(errs[:]...)
}

// each reads words between commas, each once.
func each[T comparable](name, list string, read func(string) (T, error)) ([]T, error) {
	var out []T
	for word := range strings.SplitSeq(list, ",") {
		x, err := read(strings.TrimSpace(word))
		if err != nil {
			return nil, fmt.Errorf("-%s is %q: %w", name, list, err)
		}
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out, nil
}

func parseKind(word string) (kernels.Kind, error) {
	if k := kernels.Kind(word); slices.Contains(kernels.Kinds, k) {
		return k, nil
	}
	return "", fmt.Errorf("%q, want some of %v", word, kernels.Kinds)
}

func parseVariant(word string) (string, error) {
	have := cpu.Variants()
	if word == "best" {
		return have[len(have)-1], nil
	}
	if !slices.Contains(have, word) {
		return "", fmt.Errorf("%q, want best, all or some of %v", word, have)
	}
	return word, nil
}

func typeNames() string {
	var names []string
	for _, t := range kernels.Types {
		names = append(names, t.String())
	}
	return strings.Join(names, ",")
}

// defaultThreads is one, and all that there are.
func defaultThreads() string {
	if n := runtime.GOMAXPROCS(0); n > 1 {
		return fmt.Sprintf("1,%d", n)
	}
	return "1"
}

// kernelRun is a run of kernels.
type kernelRun struct {
	*kernelFlags
	cases  []kernels.Case
	peers  []kernels.Peer
	runner *kernels.Runner
	roofs  kernels.Roofs
	rows   []kernels.Row
	start  time.Time
}

// newKernelRun checks a command line: before the work, not after.
func newKernelRun(std streams, args []string) (*kernelRun, error) {
	o, err := parseKernels(std, args)
	if err != nil {
		return nil, err
	}
	r := &kernelRun{kernelFlags: o, start: time.Now(), cases: o.axes.Cases(o.full)}
	all := r.cases[0]
	r.cases = slices.DeleteFunc(r.cases, func(c kernels.Case) bool { return !strings.Contains(c.String(), o.only) })
	if len(r.cases) == 0 {
		return nil, fmt.Errorf("no case contains %q; they look like %v", o.only, all)
	}
	for _, path := range []string{o.json, o.plot} {
		folder := filepath.Dir(path)
		if info, err := os.Stat(folder); err != nil {
			return nil, err
		} else if !info.IsDir() {
			return nil, fmt.Errorf("%s is not a directory", folder)
		}
	}
	return r, nil
}

func runKernels(ctx context.Context, std streams, args []string) error {
	r, err := newKernelRun(std, args)
	if err != nil {
		return err
	}
	return r.run(ctx, std)
}

func (r *kernelRun) run(ctx context.Context, std streams) error {
	if procs := slices.Max(r.axes.Threads); procs > runtime.GOMAXPROCS(0) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
	}
	memory := kernels.Available() / 3 // a peer has as much
	r.runner = &kernels.Runner{Variants: r.variants, Policies: r.policies, Peers: r.peers, Time: r.time, Max: r.max, Memory: memory}
	defer r.runner.Close()
	if err := r.openDevice(); err != nil {
		return err
	}
	if err := r.openPeers(ctx); err != nil {
		return err
	}
	stopped := r.measure(ctx, std)
	if stopped != nil && !errors.Is(stopped, context.Canceled) {
		return stopped
	}
	r.head(std)
	kernels.Print(std.out, r.rows, r.roofs)
	if err := r.write(); err != nil {
		return err
	}
	return stopped
}

// openDevice finds what -backend names. The device has one way to compute a case.
func (r *kernelRun) openDevice() error {
	if r.backend == "cpu" {
		return nil
	}
	b, err := openBackend(r.backend)
	if err != nil {
		return err
	}
	device, ok := b.(kernels.Device)
	if !ok {
		return fmt.Errorf("backend %s has no memory of its own", b.Name())
	}
	r.runner.Device, r.runner.Variants = device, []string{b.Name()}
	r.variants = nil
	return nil
}

// openBackend is replaced by tests.
var openBackend = backend.Open

func (r *kernelRun) openPeers(ctx context.Context) error {
	if r.torch {
		torch, err := kernels.StartTorch(ctx, r.python, r.backend, r.runner.Memory, r.max)
		if err != nil {
			return err
		}
		r.runner.Peers = append(r.runner.Peers, torch)
	}
	if r.ggml != "" {
		ggml, err := kernels.StartGGML(ctx, r.ggml, r.max)
		if err != nil {
			return err
		}
		r.runner.Peers = append(r.runner.Peers, ggml)
	}
	return nil
}

// measure fills roofs and rows until it is done, or told to stop.
func (r *kernelRun) measure(ctx context.Context, std streams) error {
	bytes, d := min(roofBytes, r.runner.Memory), roofTime
	if r.quick {
		bytes, d = min(bytes, 1<<30), d/5
	}
	roofs := func() (kernels.Roofs, error) {
		if r.runner.Device != nil {
			return kernels.DeviceRoofs(r.runner.Device, bytes, d)
		}
		return kernels.MeasureRoofs(ctx, r.axes.Threads, bytes, d)
	}
	var err error
	if r.roofs, err = roofs(); err != nil {
		return err
	}
	if err := r.runner.Prepare(r.cases); err != nil {
		return err
	}
	bar := newBar(std, int64(len(r.cases)))
	defer bar.Close()
	for i, c := range r.cases {
		if r.quick && time.Since(r.start) > quickLimit {
			fmt.Fprintf(std.err, "-quick: %d of %d cases left out, for want of time\n", len(r.cases)-i, len(r.cases))
			break
		}
		name := c.String()
		if c.Threads > 0 {
			name += fmt.Sprintf(", %d threads", c.Threads)
		}
		bar.Describe(name)
		rows, err := r.runner.Run(ctx, c)
		if err != nil {
			return err
		}
		r.rows = append(r.rows, rows...)
		bar.Add(1)
	}
	again, err := roofs()
	if err != nil {
		return err
	}
	r.roofs.Raise(again)
	return nil
}

// head says where and how the figures came about.
func (r *kernelRun) head(std streams) {
	facts := machine(r.runner.Backend())
	fmt.Fprintf(std.out, "%s, %s, %s, commit %s, GOMAXPROCS %d, ", facts["processor"], facts["os"], facts["go"], commit(facts), runtime.GOMAXPROCS(0))
	if r.runner.Device != nil {
		fmt.Fprintf(std.out, "backend %s\n", facts["backend"])
	} else {
		fmt.Fprintf(std.out, "leaf loops %s\n", strings.Join(r.variants, ", "))
	}
	fmt.Fprintf(std.out, "each case %v for each contender, in turn; medians; %v in all\n", r.time, time.Since(r.start).Round(time.Second))
	r.roofs.Print(std.out)
	if len(r.rows) > 0 {
		fmt.Fprintln(std.out)
	}
}

// commit is that of the build, or, since go run leaves none, of the folder.
func commit(facts map[string]string) string {
	if c := facts["vcs.revision"]; c != "" {
		return c
	}
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output()
	if c := strings.TrimSpace(string(out)); err == nil && c != "" {
		return c
	}
	return "unknown"
}

// write writes the files that were asked for.
func (r *kernelRun) write() error {
	if r.json != "" {
		data, err := json.MarshalIndent(kernels.Results(r.rows, r.roofs), "", "  ")
		if err != nil {
			return err
		}
		if err := atomicfile.Write(r.json, append(data, '\n')); err != nil {
			return err
		}
	}
	if r.plot == "" {
		return nil
	}
	picture, err := r.picture()
	if err != nil {
		return err
	}
	return atomicfile.Write(r.plot, picture)
}

// picture is the roofline plot.
func (r *kernelRun) picture() ([]byte, error) {
	var roofs []report.RooflineRoof
	for _, x := range r.roofs {
		name := "roof of the device"
		if x.Threads > 0 {
			name = fmt.Sprintf("roof, threads %d", x.Threads)
		}
		roofs = append(roofs, report.RooflineRoof{Name: name, GFLOPs: x.FMA, GBps: x.Read})
	}
	var points []report.RooflinePoint
	for i := range r.rows {
		row := &r.rows[i]
		if row.Seconds == 0 {
			continue
		}
		kind := string(row.Kind)
		if row.Threads > 0 {
			kind += fmt.Sprintf(", threads %d", row.Threads)
		}
		if row.Peer != "" {
			kind = strings.Fields(row.Peer)[0] + " " + strings.TrimSpace(row.Variant+" "+kind)
		}
		points = append(points, report.RooflinePoint{Kind: kind, Intensity: row.Intensity(), GFLOPs: row.FLOP() / row.Seconds / 1e9})
	}
	return report.Roofline("Attention under the roofs of the machine", processor()+" · "+fmt.Sprint(len(points))+" measurements", roofs, points)
}
