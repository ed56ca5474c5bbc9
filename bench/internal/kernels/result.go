package kernels

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/longctx/longctx/cpu/roof"
)

// Roof is what the machine can do at most with so many threads.
type Roof struct {
	Threads     int
	FMA, Read   float64 // GFLOP/s, GB/s
	Instruction string  // that reached them
}

// Roofs are those of the numbers of threads that a run has.
type Roofs []Roof

// MeasureRoofs takes about 2·d for each number of threads, and reads so many
// bytes of memory.
func MeasureRoofs(ctx context.Context, threads []int, bytes int64, d time.Duration) (Roofs, error) {
	best := roof.Variants()[0]
	var list Roofs
	for _, n := range threads {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		fma, err := roof.FMA(best, n, d)
		if err != nil {
			return nil, err
		}
		read, err := roof.Read(best, n, bytes, d)
		if err != nil {
			return nil, err
		}
		list = append(list, Roof{n, fma.Rate, read.Rate, best.String()})
	}
	return list, nil
}

// DeviceRoofs are those of a device, as of 0 threads.
func DeviceRoofs(b Device, bytes int64, d time.Duration) (Roofs, error) {
	x, err := b.MeasureRoof(bytes, d)
	if err != nil {
		return nil, err
	}
	return Roofs{{0, x.FMA / 1e9, x.Read / 1e9, "FP32"}}, nil
}

// Raise keeps the better of r and other, which has the same threads.
func (r Roofs) Raise(other Roofs) {
	for i := range r {
		r[i].FMA, r[i].Read = max(r[i].FMA, other[i].FMA), max(r[i].Read, other[i].Read)
	}
}

// of is the roof of so many threads.
func (r Roofs) of(threads int) Roof {
	for _, x := range r {
		if x.Threads == threads {
			return x
		}
	}
	return Roof{Threads: threads, FMA: math.NaN(), Read: math.NaN()}
}

// Result is an entry of the JSON that the command writes.
type Result struct {
	Case     string  `json:"case"`
	Backend  string  `json:"backend"`
	Variant  string  `json:"variant"` // leaf loops and policy; what a peer calls its way
	Peer     string  `json:"peer"`    // "": this library
	Threads  int     `json:"threads"` // 0: of a device
	GFLOPs   float64 `json:"gflops"`
	GBps     float64 `json:"gbps"`
	Roof     float64 `json:"roof"`     // that bounds the case: GFLOP/s, or GB/s where memory does
	Fraction float64 `json:"fraction"` // of that roof
	Median   float64 `json:"ms_median"`
}

// memoryBound says which roof is the lower one above a case.
func (x Roof) memoryBound(c Case) bool { return c.Intensity()*x.Read < x.FMA }

// result is a Row that has a time, under the roof.
func (row *Row) result(roofs Roofs) Result {
	x := roofs.of(row.Threads)
	r := Result{
		Case: row.Case.String(), Backend: row.Backend, Variant: row.Variant, Peer: row.Peer, Threads: row.Threads,
		GFLOPs: row.FLOP() / row.Seconds / 1e9, GBps: row.Bytes() / row.Seconds / 1e9, Median: row.Seconds * 1e3,
	}
	if x.memoryBound(row.Case) {
		r.Roof, r.Fraction = x.Read, r.GBps/x.Read
	} else {
		r.Roof, r.Fraction = x.FMA, r.GFLOPs/x.FMA
	}
	return r
}

// Results are those of the rows that have a time.
func Results(rows []Row, roofs Roofs) []Result {
	list := []Result{}
	for i := range rows {
		if rows[i].Seconds > 0 {
			list = append(list, rows[i].result(roofs))
		}
	}
	return list
}

// Print writes the roofs.
func (r Roofs) Print(w io.Writer) {
	for _, x := range r {
		fmt.Fprintf(w, "%s: FMA %.1f GFLOP/s (%s), memory read %.1f GB/s\n", x.of(), x.FMA, x.Instruction, x.Read)
	}
}

func (x Roof) of() string {
	switch x.Threads {
	case 0:
		return "device"
	case 1:
		return "1 thread"
	}
	return fmt.Sprintf("%d threads", x.Threads)
}

// Print writes the rows as a table, the contenders of a case together, with
// the speed of each beside that of the case's first.
func Print(w io.Writer, rows []Row, roofs Roofs) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "case\tthreads\tby\tms\tGFLOP/s\tGB/s\troof\t% of it\tspeed\terror, or why not")
	var first float64
	for i := range rows {
		row := &rows[i]
		name, threads := row.Case.String(), fmt.Sprint(row.Threads)
		if row.Threads == 0 {
			threads = "–"
		}
		if i > 0 && rows[i-1].Case == row.Case {
			name, threads = "", ""
		} else {
			first = row.Seconds
		}
		by := strings.TrimSpace(row.Peer + " " + row.Variant)
		if row.Seconds == 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\t–\t–\t–\t–\t–\t–\t%s\n", name, threads, by, row.Note)
			continue
		}
		r := row.result(roofs)
		unit := "GFLOP/s"
		if roofs.of(row.Threads).memoryBound(row.Case) {
			unit = "GB/s"
		}
		speed, relative := "–", "–"
		if first > 0 {
			speed = fmt.Sprintf("%.2f", first/row.Seconds)
		}
		if !math.IsNaN(row.Error) {
			relative = fmt.Sprintf("%.1e", row.Error)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.4g\t%.1f\t%.2f\t%.1f %s\t%.1f\t%s\t%s\n",
			name, threads, by, r.Median, r.GFLOPs, r.GBps, r.Roof, unit, 100*r.Fraction, speed, relative)
	}
	t.Flush()
}
