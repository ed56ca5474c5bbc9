//go:build cuda && cgo

package cuda

import "fmt"

// graph is what an engine has recorded.
type graph interface {
	launch() error
	close() error
}

// Graph is a recorded sequence of Runs, to be launched as one. It holds the
// addresses of their tensors, which must still be there when it is launched. What
// a Plan changes it reads anew, so that one graph serves the steps of a decode as
// their sequences grow: see Launch.
type Graph struct {
	g    graph
	uses []use
}

// recording is a graph in the making.
type recording struct{ uses []use }

// use is a call that was recorded: a Run under a layout, or with plans another
// call, which holds for that Plan alone.
type use struct {
	a      *attention
	layout layout
	plans  int
}

// Capture records what record asks of this backend, and does not run it: Run,
// Backward and ColumnStats of planned kernels, and Merge. What has to copy tables
// to the device (Plan, AppendKV, CopyPages, Rotate and the like) cannot be
// recorded and returns an error. Nothing else may use the backend meanwhile.
func (b *Backend) Capture(record func() error) (*Graph, error) {
	r := &recording{}
	if !b.recording.CompareAndSwap(nil, r) {
		return nil, fmt.Errorf("cuda: capture: a graph is being recorded already")
	}
	defer b.recording.Store(nil)
	g, err := b.dev.capture(record)
	if err != nil {
		return nil, fmt.Errorf("cuda: capture: %w", err)
	}
	return &Graph{g, r.uses}, nil
}

// Launch runs the graph after all that was asked of the backend before, each Run
// as its kernel's last Plan has it. It returns a *StaleGraphError, and runs
// nothing, where such a Plan does not fit; a graph with Backward or ColumnStats
// is stale after any Plan of their kernels.
func (g *Graph) Launch() error {
	for _, u := range g.uses {
		fits := u.a.batch != nil && u.a.layout == u.layout
		if u.plans > 0 {
			fits = u.a.batch != nil && u.a.plans == u.plans
		}
		if !fits {
			return &StaleGraphError{u.a.Name()}
		}
	}
	return g.g.launch()
}

// Close frees the graph.
func (g *Graph) Close() error { return g.g.close() }
