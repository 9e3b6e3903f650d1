// The search of pages opened from disk. Browsers start no worker from a file, so its script runs in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class {
    constructor(url) {
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = data => setTimeout(() => this.onmessage?.({ data }))
      const script = inside.document.createElement("script")
      script.src = url
      script.onload = () => this.waiting.splice(0).forEach(data => this.deliver(data))
      script.onerror = error => this.onerror?.(error)
      this.deliver = data => setTimeout(() => inside.onmessage?.({ data }))
      inside.document.body.append(script)
    }
    postMessage(data) {
      this.frame.contentWindow.onmessage ? this.deliver(data) : this.waiting.push(data)
    }
    terminate() {
      this.frame.remove()
    }
  }
